"""What a masked client is sent by a server that changes messages, or asks again."""

from flwr.app import ConfigRecord, Message, RecordDict

from fedproxy_secure.flower import client_app
from fedproxy_secure.proxy_intake import store as proxy_store


def sent_again(world, kind, content, context):
    """What the client answers to such a request after the rounds."""
    with proxy_store.offered_on_this_host(world[1]):
        return client_app.app(Message(content, 2, kind), context).content


def changed(message, **fields):
    """The message with other fields in its records; a server may send one content to all nodes."""
    content = RecordDict(dict(message.content.items()))
    for name, values in fields.items():
        content[name] = ConfigRecord(dict(content.config_records[name]) | values)
    message.content = content
    return message
