"""The commands of `deploy` as a person types them: what they print, and a line where something is wrong."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.deploy import preflight
from fedproxy_secure.deploy.kit import needed_kit
from fedproxy_secure.deploy.running import page_of, standing_of
from fedproxy_secure.deploy.site import open_site
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import ClientPolicy
from fedproxy_secure.flower.launch.processes import free_port
from tests.support.connections import NOBODY
from tests.support.tiny import tiny_settings

SITES = ("c0", "c1", "c2")


def typed(*words, code=0):
    """Run a command in this process and return what it printed; it must end with this code."""
    done = CliRunner().invoke(app, ["deploy", *map(str, words)])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The settings' file, and folders of an owner and three sites that are set up, up to accepted kits."""
    folder = tmp_path_factory.mktemp("typed")
    settings = tiny_settings(folder, seeds=[0], protect={"scheme": "masking"}, federate={"min_clients": 3})
    (folder / "job.yaml").write_text(yaml.safe_dump(settings))
    typed("init", folder / "job.yaml", "--address", "127.0.0.1:1", "--out", folder / "owner")
    told = {name: typed("join", "--name", name, "--out", folder / name) for name in SITES}
    prints = {name: text.split("fingerprint: ")[1].strip() for name, text in told.items()}
    requests = [folder / name / f"{name}.request.json" for name in SITES]
    given = [word for name in SITES for word in ("--fingerprint", prints[name].upper().replace("-", " "))]
    assert typed("approve", folder / "owner", *requests, *given).count("approved") == 3
    assert typed("kit", folder / "owner").count("epoch 1") == 3
    key = next(word for word in (folder / "owner" / "card.txt").read_text().split() if len(word) == 64)
    compared = set()
    for name in SITES:
        said = typed(
            "accept", folder / name, folder / "owner" / "kits" / f"{name}.kit.json", "--owner", key
        )
        assert "proposed by the owner: edit it" in said
        client = folder / name / "client.yaml"  # the proposal does not say where the records lie
        text = client.read_text().replace(f"{name}.{{split}}", f"{name[1:]}.{{split}}")
        client.write_text(text.replace("data_root: null", f"data_root: {settings['data']['root']}"))
        compared.add(said.split("compare with other sites: ")[1].split()[0])
    assert len(compared) == 1
    return folder


def test_a_members_fingerprint_is_too_long_for_two_lists_of_one_owner_to_share_it(started):
    """Whoever makes both lists tries the square root of all fingerprints: 2^96."""
    shown = typed("preflight", started / "c0", code=2).splitlines()[0].split("3 sites: ")[1]
    assert len(shown.replace("-", "")) == 192 // 4
    assert all(len(group) == 4 for group in shown.split("-"))


def test_preflight_says_what_is_agreed_on_in_words(started):
    said = typed("preflight", started / "c0", code=2)
    assert "ok   policy: masking, no differential privacy, same as the owner's job" in said.splitlines()


@pytest.mark.parametrize(
    ("unit", "privacy", "said"),
    [
        (
            "record",
            {"max_epsilon": 8},
            "record-level differential privacy, epsilon at most 8 at delta 1e-05",
        ),
        (
            "client",
            {"target_epsilon": 2.5},
            "client-level differential privacy, epsilon at most 2.5 at delta 1e-05",
        ),
    ],
)
def test_a_policy_with_differential_privacy_is_told_with_its_unit_and_limit(started, unit, privacy, said):
    kit = needed_kit(open_site(started / "c0"))
    kit.proposal["privacy"] |= {"unit": unit, "ledger": "ledger", "max_epsilon": None, **privacy}
    policy = ClientPolicy.model_validate(kit.proposal)
    assert preflight._policy_line(policy, kit) == f"masking, {said}, same as the owner's job"


def test_preflight_says_what_is_in_order_and_that_the_owner_is_away(started):
    said = typed("preflight", started / "c0", code=2)
    assert [line[:3] for line in said.splitlines()[:8]] == ["ok "] * 7 + ["BAD"]
    assert "does not answer" in said
    assert said.splitlines()[-1] == "error: 1 of the checks above failed; repair what they name"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rounds: 3", "rounds: 2", "rounds: the job has 3, client.yaml has 2"),
        ("scheme: masking", "scheme: unsafe_plaintext", "protect.scheme: the job has 'masking'"),
        ("name: c0", "name: c1", "client.name=c1: must be c0"),
        ("record: false", "record: true", "audit: must not set record or canaries at a site"),
        ("rounds: 3", "roundz: 3", "client.yaml: roundz: unknown key; did you mean 'rounds'?"),
        ("rounds: 3\n", "", "client.yaml: rounds: is missing; must be given"),
        ("  scheme: masking", "  shceme: masking", "protect.shceme: unknown key; "),
        ("0.{split}", "9.{split}", "9."),
        ("protect:", "protect: 1\nother:", "must hold a policy"),
        pytest.param(
            "device: cpu",
            "device: cuda",
            "device=cuda: torch finds no CUDA device here",
            marks=[
                pytest.mark.torch,
                pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU"),
            ],
        ),
        ("client:", "client: [", "client.yaml: is not YAML: line "),
        ("rounds: 3", "rounds: 3\nrounds: 4", "rounds is given twice"),
    ],
)
def test_what_is_wrong_with_a_sites_own_file_is_one_line_and_ends_start_too(started, old, new, line):
    file = started / "c0" / "client.yaml"
    text = file.read_text()
    assert old in text
    try:
        file.write_text(text.replace(old, new, 1))
        assert line in typed("preflight", started / "c0", code=2)
        assert line in typed("start", started / "c0", code=2)
    finally:
        file.write_text(text)


def test_keys_that_others_may_read_are_found(started):
    key = next((started / "c1" / "generations" / "1").glob("node.key"))
    key.chmod(0o644)
    try:
        assert "must be 600" in typed("preflight", started / "c1", code=2)
    finally:
        key.chmod(0o600)


def test_status_and_stop_say_that_nothing_runs(started):
    assert "nothing runs here" in typed("status", started / "owner")
    assert "nothing runs here" in typed("status", started / "c0")
    assert typed("stop", started / "c0") == "nothing runs here\n"


def test_an_owners_status_says_when_her_certificate_ends(started):
    assert re.search(
        r"Ends \(UTC\): 20\d\d-\d\d-\d\d, in 39\d days$", typed("status", started / "owner"), re.M
    )


def test_a_sites_programs_are_not_told_by_the_environment_that_one_machine_plays_all(started, tmp_path):
    """With it they would need no policy."""
    command = [sys.executable, "-m", "fedproxy_secure", "deploy", "start", str(started / "c1")]
    environment = os.environ | {"FEDPROXY_ONE_MACHINE": "1"}
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as node,
    ):
        try:
            while (lines := (tmp_path / "said").read_text()).count("started, process") < 2:
                assert node.poll() is None, lines
                time.sleep(0.05)
            programs = re.findall(r"started, process (\d+);", lines)
            assert b"FEDPROXY_ONE_MACHINE=1" in environment_of(node.pid)
            for program in programs:
                while b"FEDPROXY_CACHE" not in (names := dict(map(named, environment_of(program)))):
                    time.sleep(0.05)  # it is still a copy of the node
                assert b"FEDPROXY_ONE_MACHINE" not in names
        finally:
            node.terminate()


def environment_of(process):
    return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")


def named(variable):
    name, _, value = variable.partition(b"=")
    return name, value


def answer_to_another_user(url):
    """The status with which a page answers another user of this machine; only root can act as one."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root can act as another user")
    os.seteuid(NOBODY)
    try:
        opened = socket.socket()  # its user is the one who makes it
    finally:
        os.seteuid(0)
    with closing(opened):
        opened.connect(("127.0.0.1", urlsplit(url).port))
        opened.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return int(opened.makefile("rb").readline().split()[1])


def test_a_sites_page_is_for_the_user_who_runs_it_unless_it_is_for_all(started):
    with page_of(started / "c0", free_port()) as url:
        with urlopen(f"{url}metrics") as answer:
            assert answer.status == 200
        assert answer_to_another_user(url) == 403
    with page_of(started / "c0", free_port(), everybody=True) as url:
        assert answer_to_another_user(url) == 200
    with page_of(started / "owner", free_port()) as url:
        assert answer_to_another_user(url) == 200


def test_where_the_system_does_not_say_who_asks_a_sites_page_needs_to_be_for_all(started, monkeypatch):
    monkeypatch.delattr(socket, "AF_NETLINK")  # as in a sandbox that has no inet_diag
    with (
        pytest.raises(ConfigError, match=r"tells which user opened a connection .*; add --status-for-all"),
        page_of(started / "c0", free_port()),
    ):
        pass
    with page_of(started / "c0", free_port(), everybody=True) as url, urlopen(f"{url}metrics") as answer:
        assert answer.status == 200


def test_an_owners_standing_is_read_whatever_was_edited_since_her_run_began(own):
    job, certificate = own / "owner" / "job.yaml", own / "owner" / "authority" / "server.pem"
    job.write_text(job.read_text().replace("seeds:\n- 0\n", "seeds:\n- 0\n- 1\n"))
    assert "a deployment trains once" in typed("run", own / "owner", code=2)
    assert standing_of(own / "owner").healthy
    certificate.write_text("not PEM")
    standing = standing_of(own / "owner")
    assert (standing.healthy, standing.certificate_ends) == (False, None)
    assert standing.why == "has not begun; the certificate authority/server.pem cannot be read"
    assert standing.why in typed("status", own / "owner")


def test_the_line_that_says_how_to_go_on_has_all_that_was_typed(started, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "disk_usage", interrupted)
    said = typed("start", started / "c0", "--status-port", 9464, "--status-for-all", code=130)
    assert said.endswith(f"deploy start {started / 'c0'} --status-port 9464 --status-for-all\n")


def test_a_folder_that_is_none_is_one_line(tmp_path):
    for command in ("stop", "status", "rotate", "preflight", "start"):
        assert "is not a site's folder" in typed(command, tmp_path, code=2)
    for words in (("kit", tmp_path), ("run", tmp_path), ("revoke", tmp_path, "c0")):
        assert "is not an owner's folder" in typed(*words, code=2)


def test_a_fingerprint_that_is_not_the_requests_lets_nobody_in_and_does_not_show_the_right_one(started):
    request = started / "c2" / "c2.request.json"
    right = typed("join", "--name", "c2", "--out", started / "c2").split("fingerprint: ")[1].strip()
    assert "--fingerprint is missing" in typed("approve", started / "owner", request, code=2)
    said = typed("approve", started / "owner", request, "--fingerprint", "0000-1111", code=2)
    assert right not in said
    assert "ask the site again" in said


def refusal(*words):
    """The one line with which a command refuses."""
    (line,) = typed(*words, code=2).splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def own(started, tmp_path):
    """A copy of the folders, for tests that change who takes part."""
    return Path(shutil.copytree(started, tmp_path / "own"))


def test_a_kit_with_other_members_is_one_line_that_shows_them_and_an_earlier_epoch_s_is_one(own):
    kit, old = own / "owner" / "kits" / "c0.kit.json", own / "old.kit.json"
    shutil.copy(kit, old)
    typed("rotate", own / "c1")
    told = typed("join", "--name", "c1", "--out", own / "c1").split("fingerprint: ")[1].strip()
    typed("approve", own / "owner", own / "c1" / "c1.request.json", "--fingerprint", told)
    typed("kit", own / "owner")
    said = refusal("accept", own / "c0", kit)
    assert "(c1 has another key); ask other sites" in said
    typed("accept", own / "c0", kit, "--members", said.split()[-1])
    assert "epoch=1: must be >= 2" in refusal("accept", own / "c0", old)


def test_an_owner_with_a_new_authority_makes_kits_of_a_later_epoch_before_she_runs(own):
    assert "authority and certificate are new" in typed("rotate", own / "owner", "--new-authority")
    assert "names another authority than" in refusal("run", own / "owner")
    assert "epoch 2: " in typed("kit", own / "owner")
    typed("accept", own / "c0", own / "owner" / "kits" / "c0.kit.json")


def test_a_kit_of_another_owner_is_one_line(own):
    other, requests = own / "other", [own / name / f"{name}.request.json" for name in SITES]
    typed("init", own / "job.yaml", "--address", "127.0.0.1:1", "--out", other)
    told = [typed("join", "--name", name, "--out", own / name) for name in SITES]
    prints = [word for text in told for word in ("--fingerprint", text.split("fingerprint: ")[1].strip())]
    typed("approve", other, *requests, *prints)
    typed("kit", other)
    assert "is signed by" in refusal("accept", own / "c0", other / "kits" / "c0.kit.json")


def test_a_run_without_kits_is_one_line(started, tmp_path):
    typed("init", started / "job.yaml", "--address", "127.0.0.1", "--out", tmp_path / "new")
    assert "has no kits" in typed("run", tmp_path / "new", code=2)
    assert "0 sites are approved" in typed("kit", tmp_path / "new", code=2)


def test_own_certificates_come_with_key_and_authority(started, tmp_path):
    words = ("init", started / "job.yaml", "--address", "127.0.0.1", "--out", tmp_path / "new")
    assert "must be given together" in typed(*words, "--certificate", "x.pem", code=2)
    tls = started / "owner" / "authority"
    own = ["--certificate", tls / "server.pem", "--key", tls / "server.key"]
    typed(*words, *own, "--authority", tls / "authority.pem")
    assert "was issued by your own authority" in typed("rotate", tmp_path / "new", code=2)


def test_a_site_that_is_revoked_or_too_few_end_a_run_before_it_begins(started):
    """The last test of this folder: it changes who takes part."""
    assert "certificate renewed" in typed("rotate", started / "owner")
    assert "--new-authority is the owner's" in typed("rotate", started / "c1", "--new-authority", code=2)
    assert "keys of generation 2" in typed("rotate", started / "c1")
    assert "its kit is for other keys" in typed("start", started / "c1", code=2)
    assert "revoked c0" in typed("revoke", started / "owner", "c0")
    assert "2 sites of epoch 1 may take part: must be >= 3" in typed("run", started / "owner", code=2)
