"""What Ray lets pass in a file for `ray up`, and we do not: one function per rule, each giving the problems it sees."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

STORAGE = "/mnt/ray_ltdd"
TOKEN = "~/.ray/auth_token"
LONGEST_IDLE_MINUTES = 30
START = ("head_start_ray_commands", "worker_start_ray_commands")
SETUP = ("head_setup_commands", "worker_setup_commands")
# Ray fills in commands of its own where one of these is missing
REPLACED = ("setup_commands", *SETUP, *START)

# every key that may stand at a place; None: anything may stand below
Keys = dict[str, Any]
_DISK: Keys = {"DeviceName": None, "Ebs": {"VolumeSize": None, "VolumeType": None, "DeleteOnTermination": None, "Encrypted": None}}
_GCP_DISK: Keys = {"boot": None, "autoDelete": None, "type": None, "initializeParams": {"diskSizeGb": None, "sourceImage": None, "diskType": None}}
_NETWORK: Keys = {"subnetwork": None, "accessConfigs": {"name": None, "type": None}}
PROVIDER_KEYS: dict[str, Keys] = {
    "aws": dict.fromkeys(("type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "key_pair", "security_group")),
    "gcp": dict.fromkeys(("type", "region", "availability_zone", "project_id", "cache_stopped_nodes", "use_internal_ips")),
}
NODE_KEYS: dict[str, Keys] = {
    "aws": {
        **dict.fromkeys(("InstanceType", "ImageId", "SecurityGroupIds", "SubnetIds", "KeyName", "IamInstanceProfile", "TagSpecifications")),
        "BlockDeviceMappings": _DISK,
        "MetadataOptions": dict.fromkeys(("HttpTokens", "HttpPutResponseHopLimit")),
        "InstanceMarketOptions": {"MarketType": None, "SpotOptions": {"MaxPrice": None}},
    },
    "gcp": {
        "machineType": None,
        "disks": _GCP_DISK,
        "networkInterfaces": _NETWORK,
        "metadata": {"items": {"key": None, "value": None}},
        "guestAccelerators": dict.fromkeys(("acceleratorType", "acceleratorCount")),
        "scheduling": dict.fromkeys(("preemptible", "onHostMaintenance")),
    },
}


@dataclass(frozen=True)
class ClusterFile:
    """A file for `ray up` and the repository it is for."""

    config: dict[str, Any]
    root: Path

    @property
    def cloud(self) -> str:
        return str(self.config["provider"]["type"])

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        return dict(self.config["available_node_types"])

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        return {name: node for name, node in self.nodes.items() if name != self.config["head_node_type"]}

    @property
    def head(self) -> dict[str, Any]:
        return self.nodes[self.config["head_node_type"]]

    def commands(self, *sections: str) -> list[str]:
        return [command for section in sections for command in self.config.get(section, [])]

    def starts(self) -> list[str]:
        return [command for command in self.commands(*START) if "ray start" in command]


def unknown_keys(values: Any, allowed: Keys | None, place: str) -> Iterator[str]:
    """Keys of nested `values` that `allowed` does not have; of a list, those of every item."""
    if isinstance(values, list):
        for value in values:
            yield from unknown_keys(value, allowed, place)
    elif isinstance(values, dict) and allowed is not None:
        for key, value in values.items():
            if key not in allowed:
                yield f"{place} has no key {key}"
            else:
                yield from unknown_keys(value, allowed[key], f"{place}.{key}")


def texts(values: Any) -> Iterator[str]:
    """Every string among nested values, keys included."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from texts(key)
            yield from texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from texts(value)


def keys(file: ClusterFile) -> Iterator[str]:
    """No misspelt key of the provider or of a node: Ray hands them on unread."""
    yield from unknown_keys(file.config["provider"], PROVIDER_KEYS[file.cloud], "provider")
    for name, node in file.nodes.items():
        yield from unknown_keys(node["node_config"], NODE_KEYS[file.cloud], f"{name}.node_config")


def limits(file: ClusterFile) -> Iterator[str]:
    """Every limit is written out and can hold; Ray drops a min_workers at the top and takes a minimum above a maximum."""
    if "min_workers" in file.config:
        yield "min_workers at the top is ignored: give it to a node type"
    if "max_workers" not in file.config:
        yield "max_workers at the top is missing: Ray's default is 2"
    for name, node in file.workers.items():
        low, high = node.get("min_workers"), node.get("max_workers")
        if low is None or high is None:
            yield f"{name} needs min_workers and max_workers"
        elif low > high or high > file.config.get("max_workers", high):
            yield f"{name}: min_workers {low}, max_workers {high} and the file's max_workers do not ascend"


def mounts(file: ClusterFile) -> Iterator[str]:
    """What is copied to the nodes exists, belongs to the source, and is small."""
    for source in file.config.get("file_mounts", {}).values():
        if source.startswith(("~", "/")):
            if source != TOKEN:
                yield f"{source} is outside the repository"
        elif not (file.root / source).exists():
            yield f"{source} does not exist"
        elif (file.root / source).resolve() == file.root.resolve():
            yield "the whole checkout would be read and copied, .venv included"


def head(file: ClusterFile) -> Iterator[str]:
    """The head computes nothing."""
    if file.head["resources"] != {"CPU": 0} or file.head.get("max_workers") != 0:
        yield "the head must have the resources {CPU: 0} and max_workers 0"


def memory(file: ClusterFile) -> Iterator[str]:
    """Worker nodes say their memory: an expert host asks for some, and the autoscaler starts no node of unknown memory for it."""
    yield from (f"{name} declares no memory" for name, node in file.workers.items() if node["resources"].get("memory", 0) < 2**30)


def tiers(file: ClusterFile) -> Iterator[str]:
    """One group on demand and one of spot nodes, labelled as what they are."""
    marks = {"aws": "InstanceMarketOptions", "gcp": "preemptible"}
    if sorted(node.get("labels", {}).get("tier", "") for node in file.workers.values()) != ["on-demand", "spot"]:
        yield "there must be two groups, with the labels tier: on-demand and tier: spot"
    for name, node in file.workers.items():
        if (marks[file.cloud] in set(texts(node["node_config"]))) != (node.get("labels", {}).get("tier") == "spot"):
            yield f"{name} is labelled otherwise than it is bought"


def billing(file: ClusterFile) -> Iterator[str]:
    """Idle nodes end, and nothing of them stays and is billed."""
    if file.cloud == "aws" and file.config["provider"].get("cache_stopped_nodes") is not False:
        yield "cache_stopped_nodes must be false: Ray's default keeps the disks of stopped nodes"
    if not 0 < file.config.get("idle_timeout_minutes", 0) <= LONGEST_IDLE_MINUTES:
        yield f"idle_timeout_minutes must be between 1 and {LONGEST_IDLE_MINUTES}"
    disks = [disk for node in file.nodes.values() for disk in node["node_config"].get("BlockDeviceMappings", [])]
    if any(disk["Ebs"].get("DeleteOnTermination") is not True for disk in disks):
        yield "disks must end with their node"


def network(file: ClusterFile) -> Iterator[str]:
    """A security group or network of the user's own on every node, and the whole internet nowhere."""
    if any(everyone in text for text in texts(file.config) for everyone in ("0.0.0.0", "::/0")):
        yield "something is open to every address"
    if "security_group" in file.config["provider"]:
        yield "Ray adds SSH from everywhere to the group in provider.security_group"
    own = {"aws": "SecurityGroupIds", "gcp": "networkInterfaces"}[file.cloud]
    given = [node["node_config"].get(own) for node in file.nodes.values()]
    if not given[0] or any(value != given[0] for value in given):
        yield f"every node needs the same {own}"


def dashboard(file: ClusterFile) -> Iterator[str]:
    """The job server, which runs what it is sent, listens to its own machine only."""
    if not any("--head" in start and "--dashboard-host=127.0.0.1" in start for start in file.starts()):
        yield "ray start --head needs --dashboard-host=127.0.0.1"


def token(file: ClusterFile) -> Iterator[str]:
    """Token authentication is switched on where Ray is started and wherever somebody logs in, and every node has the token."""
    if len(file.starts()) != len(START) or any("RAY_AUTH_MODE=token ray start" not in start for start in file.starts()):
        yield "both ray start commands need RAY_AUTH_MODE=token"
    for section in SETUP:
        if not any("export RAY_AUTH_MODE=token" in command and "~/.bashrc" in command for command in file.commands(section)):
            yield f"{section} must export RAY_AUTH_MODE=token in ~/.bashrc"
    home = f"/home/{file.config['auth']['ssh_user']}/.ray/auth_token"
    if file.config.get("file_mounts", {}).get(home) != TOKEN:
        yield f"{home} must be mounted from {TOKEN}"


def storage(file: ClusterFile) -> Iterator[str]:
    """Every node mounts the shared storage at one path, sees what others write at once, and does not start Ray without it."""
    for section in SETUP:
        mounted = [command for command in file.commands(section) if "sudo mount " in command and command.endswith(f" {STORAGE}")]
        if len(mounted) != 1 or "lookupcache=positive" not in mounted[0] or "hard" not in mounted[0]:
            yield f"{section} must mount {STORAGE}, hard and with lookupcache=positive"
    if any(f"mountpoint {STORAGE} &&" not in start for start in file.starts()):
        yield f"ray start must be behind `mountpoint {STORAGE} &&`"


def threads(file: ClusterFile) -> Iterator[str]:
    """Workers do not inherit the OMP_NUM_THREADS=1 under which Ray runs these commands."""
    if any("unset OMP_NUM_THREADS" not in start for start in file.starts()):
        yield "ray start must be behind `unset OMP_NUM_THREADS`"


def versions(file: ClusterFile) -> Iterator[str]:
    """All nodes run the installed Ray, one Python and one minor version of torch that the project is for, and nothing of Ray's default commands."""
    yield from (f"{section} is missing: Ray's own would run" for section in REPLACED if section not in file.config)
    if any(re.search(r"\.whl|nightly|\.dev0|latest", command) for command in file.commands(*REPLACED)):
        yield "a wheel or a nightly build is installed"
    project = tomllib.loads((file.root / "pyproject.toml").read_text())["project"]
    needed = {(r := Requirement(text)).name: r.specifier for text in project["dependencies"]}
    for section in SETUP:
        text = " ".join(file.commands(section))
        wanted = {(r := Requirement(quoted)).name: r for quoted in re.findall(r"'((?:ray|torch|torchvision)\b[^']*)'", text)}
        if "ray" not in wanted or str(wanted["ray"].specifier) != f"=={ray.__version__}" or wanted["ray"].extras != {"default", "train", "tune"}:
            yield f"{section} must install ray[default,train,tune]=={ray.__version__}"
        for name in ("torch", "torchvision"):
            if name not in wanted or not _one_minor_of(wanted[name].specifier, needed[name]):
                yield f"{section} must install one minor version of {name} out of {needed[name]}"
        pythons = re.findall(r"uv venv --python (\S+)", text)
        if len(pythons) != 1 or not SpecifierSet(project["requires-python"]).contains(pythons[0]):
            yield f"{section} must set up one Python, {project['requires-python']}"
        if any("--exclude-newer" not in command for command in file.commands(section) if "uv pip install" in command):
            yield f"{section} must install with --exclude-newer"
    if file.config.get(SETUP[0]) != file.config.get(SETUP[1]):
        yield "head and workers must be set up by the same commands"


def image(file: ClusterFile) -> Iterator[str]:
    """Every node names its image: Ray's default is of 2018."""
    for name, node in file.nodes.items():
        named = node["node_config"].get("ImageId") or [t for t in texts(node["node_config"].get("disks")) if "/images/" in t]
        if not named:
            yield f"{name} names no image"


RULES = (keys, limits, mounts, head, memory, tiers, billing, network, dashboard, token, storage, threads, versions, image)


def lint(text: str, root: Path) -> dict[str, list[str]]:
    """Return the problems of a file for `ray up`, by the name of the rule that sees them; empty when there are none.

    Args:
        text: the file.
        root: the folder `ray up` is called in.
    """
    file = ClusterFile(yaml.safe_load(text), root)
    found = {rule.__name__: list(rule(file)) for rule in RULES}
    return {name: problems for name, problems in found.items() if problems}


def as_gcp(text: str) -> str:
    """The file's other reading: without the lines that end in #aws and with those behind #gcp, as its first lines tell the user to make it."""
    lines = [line.removeprefix("#gcp") for line in text.splitlines() if not line.endswith("#aws")]
    return "\n".join(lines) + "\n"


def _one_minor_of(wanted: SpecifierSet, needed: SpecifierSet) -> bool:
    lowest = [Version(s.version) for s in wanted if s.operator == ">="]
    if len(lowest) != 1:
        return False
    next_minor = Version(f"{lowest[0].major}.{lowest[0].minor + 1}")
    return needed.contains(lowest[0]) and wanted.contains(lowest[0]) and not wanted.contains(next_minor)
