"""`cluster.yaml` as Ray reads it, and as our lint does; every rule of the lint is shown to see its mistake."""

import re
from pathlib import Path

import pytest
import yaml
from lint import RULES, SETUP, STORAGE, as_gcp, lint
from ray_schema import as_ray_reads

from ray_ltdd.config import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
READINGS = {"aws": TEXT, "gcp": as_gcp(TEXT)}


def replaced(text, old, new):
    assert re.search(old, text), f"{old} is not in the file any more"
    return re.sub(old, new, text)


@pytest.mark.parametrize("cloud", READINGS)
def test_ray_accepts_it(cloud):
    config = as_ray_reads(yaml.safe_load(READINGS[cloud]))
    assert config["provider"]["type"] == cloud
    assert list(config["available_node_types"]) == ["head", "gpu_on_demand", "gpu_spot"]


@pytest.mark.parametrize("cloud", READINGS)
def test_our_lint_accepts_it(cloud):
    assert lint(READINGS[cloud], ROOT) == {}


@pytest.mark.parametrize("cloud", READINGS)
def test_nothing_of_rays_defaults_is_left(cloud):
    config = yaml.safe_load(READINGS[cloud])
    assert set(as_ray_reads(config)) <= set(config), "Ray fills in a section this file does not have"


def test_workers_are_set_up_once(cloud="aws"):
    """The head fills in the file a second time, which repeats what stands in setup_commands."""
    once = as_ray_reads(yaml.safe_load(READINGS[cloud]))
    assert as_ray_reads(once)["worker_setup_commands"] == once["worker_setup_commands"] == yaml.safe_load(TEXT)[SETUP[1]]


# what Ray sees itself, so that no rule of ours is needed
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("^cluster_name:", "clustername:"),
        ("GPU: 1", "GPU: 0.5"),
        ("head_node_type: head", "head_node_type: haed"),
        ("resources: {CPU: 8.*", ""),
        ("idle_timeout_minutes: 10", "idle_timeout_minutes: 10\ninitial_workers: 2"),
        ("min_workers: 0", "min_workers: 30"),
        ("priority: 10", "priorities: 10"),
    ],
)
def test_what_ray_refuses(old, new):
    with pytest.raises(Exception, match=r".+"):
        as_ray_reads(yaml.safe_load(replaced(TEXT, f"(?m){old}", new)))


# (rule, cloud, what is replaced, by what): each is a mistake that Ray lets pass and one rule of ours, no other, sees
MISTAKES = [
    ("keys", "aws", "cache_stopped_nodes: false", "cache_stopped_nodes: false\n  cache_stoped_nodes: false"),
    ("keys", "aws", "InstanceMarketOptions: {MarketType: spot}", "InstanceMarketOptions: {MarketTyp: spot}"),
    ("keys", "aws", "VolumeType: gp3", "VolumeTyp: gp3"),
    ("keys", "aws", "MetadataOptions: &metadata", "MetaDataOptions: &metadata"),
    ("keys", "gcp", "autoDelete", "autodelete"),
    ("keys", "gcp", "availability_zone", "availabilityzone"),
    ("limits", "aws", "min_workers: 0\n    max_workers: 4", "min_workers: 5\n    max_workers: 4"),
    ("limits", "aws", "min_workers: 0\n    max_workers: 16", "min_workers: 0"),
    ("limits", "aws", "max_workers: 16", "max_workers: 160"),
    ("limits", "aws", "max_workers: 20", "max_workers: 20\nmin_workers: 2"),
    ("limits", "aws", "max_workers: 20\n", ""),
    ("mounts", "aws", "configs: configs", "configs: config"),
    ("mounts", "aws", "ray_ltdd/configs: configs", "ray_ltdd: ."),
    ("mounts", "aws", "ray_ltdd/configs: configs", "ray_ltdd/configs: ~/configs"),
    ("head", "aws", "{CPU: 0}", "{}"),
    ("head", "aws", "{CPU: 0}", "{CPU: 4}"),
    ("memory", "aws", ", memory: 25769803776", ""),
    ("memory", "gcp", "memory: 25769803776", "memory: 24"),
    ("tiers", "aws", "tier: on-demand", "tier: ondemand"),
    ("tiers", "aws", " *InstanceMarketOptions.*\n", ""),
    ("tiers", "gcp", r"\{preemptible: true\}, ", ""),
    ("billing", "aws", "cache_stopped_nodes: false", "cache_stopped_nodes: true"),
    ("billing", "aws", ".*cache_stopped_nodes: false.*\n", ""),
    ("billing", "aws", "idle_timeout_minutes: 10", "idle_timeout_minutes: 1440"),
    ("billing", "aws", "idle_timeout_minutes: 10\n", ""),
    ("billing", "aws", ", DeleteOnTermination: true", ""),
    ("network", "aws", r" *SecurityGroupIds: \*security_group  #aws\n", ""),
    ("network", "aws", "availability_zone: us-west-2a", "availability_zone: us-west-2a\n  security_group: {GroupName: ray}"),
    ("network", "aws", "--disable-usage-stats", "--disable-usage-stats --node-ip-address=0.0.0.0"),
    ("network", "gcp", r" *networkInterfaces: \*network\n", ""),
    ("dashboard", "aws", "--dashboard-host=127.0.0.1", ""),
    ("dashboard", "aws", "--dashboard-host=127.0.0.1", "--dashboard-host=10.0.0.1"),
    ("token", "aws", "RAY_AUTH_MODE=token\n    ray start --head", "\n    ray start --head"),
    ("token", "aws", "RAY_AUTH_MODE=token\n    ray start --address", "\n    ray start --address"),
    ("token", "aws", "'export RAY_AUTH_MODE=token'", "'# RAY_AUTH_MODE'"),
    ("token", "aws", "/home/ubuntu/.ray/auth_token", "/home/ray/.ray/auth_token"),
    ("token", "aws", ".*auth_token: .*\n", ""),
    ("storage", "aws", ".*sudo mount.*\n", ""),
    ("storage", "aws", "amazonaws.com:/ /mnt/ray_ltdd", "amazonaws.com:/ /mnt/ray-ltdd"),
    ("storage", "aws", "lookupcache=positive,", ""),
    ("storage", "gcp", "vers=3,hard", "vers=3,soft"),
    ("storage", "aws", "mountpoint /mnt/ray_ltdd && ulimit", "ulimit"),
    ("threads", "aws", "unset OMP_NUM_THREADS PYTHONWARNINGS && ", ""),
    ("versions", "aws", r"ray\[default,train,tune\]==[\d.]+", "ray[default,train,tune]==2.59.0"),
    ("versions", "aws", r"ray\[default,train,tune\]", "ray[train,tune]"),
    ("versions", "aws", r"ray\[default,train,tune\]==", "ray[default,train,tune]>="),
    ("versions", "aws", "torch>=2.14,<2.15", "torch>=2.14"),
    ("versions", "aws", "torch>=2.14,<2.15", "torch>=1.13,<1.14"),
    ("versions", "aws", "--python 3.11", "--python 3.10"),
    ("versions", "aws", "--exclude-newer 2026-11-20 --reinstall-package", "--reinstall-package"),
    ("versions", "aws", r"setup_commands: \[\]\n", "setup_commands: [pip install https://x/ray-3.0.0.dev0-cp310.whl]\n"),
    ("versions", "aws", r"\nsetup_commands: \[\]\n", "\n"),
    ("versions", "aws", r"worker_setup_commands: \*setup\n", "worker_setup_commands: []\n"),
    ("image", "aws", r" *ImageId: \*image  #aws\n", ""),
    ("image", "gcp", ", sourceImage: [^}]*", ""),
]
# a mistake that is two at once
ALSO = {"worker_setup_commands: []\n": {"token", "storage"}}


@pytest.mark.parametrize(("rule", "cloud", "old", "new"), MISTAKES)
def test_a_mistake_is_seen_by_its_rule(rule, cloud, old, new):
    broken = replaced(READINGS[cloud], old, new)
    as_ray_reads(yaml.safe_load(broken))
    assert set(lint(broken, ROOT)) == {rule} | ALSO.get(new, set())


def test_every_rule_is_shown_to_work():
    assert {rule.__name__ for rule in RULES} == {rule for rule, *_ in MISTAKES}


def test_an_address_in_a_comment_is_no_open_port():
    assert lint(f"{TEXT}# not 0.0.0.0\n", ROOT) == {}


def test_the_head_of_the_file_names_what_is_left_to_fill_in():
    to_fill_in = set(re.findall(r"\b(?:ami|sg|fs)-0{17}\b|\b(?:PROJECT|IMAGE|FILESTORE)\b", "\n".join(TEXT.splitlines()[5:])))
    named = next(line for line in TEXT.splitlines() if line.startswith("# To fill in: "))
    assert to_fill_in == set(re.findall(r"\b(?:ami|sg|fs)-0+\b|\b[A-Z]{5,}\b", named))


def documented_runs():
    """The arguments of every `ray-ltdd run` that the page tells the user to type, continued lines joined."""
    page = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    return [line.split("ray-ltdd run ")[1].split() for line in page.splitlines() if "ray-ltdd run " in line and "`" not in line]


def test_the_runs_of_the_documentation_are_possible():
    runs = documented_runs()
    assert runs
    for path, *overrides in runs:
        config = load_config(ROOT / path[path.index("configs/") :], overrides).config
        assert config.cluster.address == "auto" and config.output.root.startswith(STORAGE)
