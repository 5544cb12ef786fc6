"""Who runs where: trainers on the first machines, producers on what is left.

Trainers stay together, because they exchange gradients at every step, while a producer sends a row
when it is done. The first machine leads: it runs the recipe's stages; the others `join`.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.config import ConfigError, Recipe

# What a machine is called in a plan without `hosts`.
HERE = "this machine"
_LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}


@dataclass(frozen=True)
class Host:
    """One machine's share.

    Attributes:
        name: as in the setting `hosts`.
        trainers: training processes; they use its GPUs 0, 1, ...
        producers: vLLM servers, as the GPU that each one uses.
        gpus: GPUs that it must have.
    """

    name: str
    trainers: int
    producers: tuple[int, ...]
    gpus: int

    @property
    def shared(self) -> tuple[int, ...]:
        """GPUs that a trainer and a producer use together (offline: one after the other)."""
        return tuple(gpu for gpu in self.producers if gpu < self.trainers)


@dataclass(frozen=True)
class Placement:
    """All machines of a run, the leading one first.

    Attributes:
        offline: producers and trainers do not run at the same time.
    """

    hosts: tuple[Host, ...]
    offline: bool

    @property
    def trainer_hosts(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.trainers)

    @property
    def crossing(self) -> float:
        """Share of the rows whose producer and trainer are on two machines.

        Any trainer may get any producer's row.
        """
        trainers = sum(host.trainers for host in self.hosts)
        producers = sum(len(host.producers) for host in self.hosts)
        at_home = sum(len(host.producers) * host.trainers for host in self.hosts)
        return 1 - at_home / (trainers * producers)

    @property
    def is_spread(self) -> bool:
        return len(self.hosts) > 1

    def number_of(self, name: str) -> int:
        """Index of a machine.

        Raises:
            ConfigError: it is not one of them.
        """
        for number, host in enumerate(self.hosts):
            if host.name == name:
                return number
        names = ", ".join(host.name for host in self.hosts)
        raise ConfigError(f"{name} is none of the run's hosts ({names}); give --number.")


def place(recipe: Recipe) -> Placement:
    """Processes to machines and GPUs, from `hosts`, `host_gpus`, `trainers` and `producers`.

    With too few GPUs for one each, a trainer and a producer share one, as in the published run.

    Raises:
        ConfigError: it cannot be done; the sentence says why and what to change.
    """
    names = recipe.hosts or (HERE,)
    _check_names(recipe, names)
    offline = recipe.hidden_states == "offline"
    trainers, producers = recipe.trainers, recipe.producers
    # One of each shares a GPU; more get one each, unless told how many there are.
    alone = len(names) == 1 and trainers == producers == 1
    needed = max(trainers, producers) if offline else trainers + producers
    room = recipe.host_gpus or (1 if alone else needed)
    total = room * len(names)
    if trainers > total:
        raise ConfigError(
            f"trainers={trainers} need a GPU each, and there are {total} (host_gpus={room} on "
            f"{_machines(names)}): lower trainers, or set host_gpus or hosts."
        )
    if producers > total:
        raise ConfigError(
            f"producers={producers} need a GPU each, and there are {total} (host_gpus={room} on "
            f"{_machines(names)}): lower producers, or set host_gpus or hosts."
        )
    trained_on = next(
        (n for n in range(1, len(names) + 1) if trainers % n == 0 and trainers // n <= room), None
    )
    if trained_on is None:
        raise ConfigError(
            f"trainers={trainers} can't be divided evenly over {_machines(names)} of "
            f"host_gpus={room}: take a multiple of the machines that train."
        )
    each = trainers // trained_on
    shares = [each if number < trained_on else 0 for number in range(len(names))]
    gpus = _producers(
        [0] * len(shares) if offline else shares, producers, _rooms(recipe, shares, room)
    )
    hosts = tuple(
        Host(
            name,
            share,
            tuple(sorted(taken)),
            max(share, *(gpu + 1 for gpu in taken)) if taken else share,
        )
        for name, share, taken in zip(names, shares, gpus, strict=True)
    )
    idle = [host.name for host in hosts if not host.trainers and not host.producers]
    if idle:
        raise ConfigError(
            f"hosts: nothing would run on {', '.join(idle)}, as trainers={trainers} and "
            f"producers={producers} fit on the others: leave it out, or raise producers."
        )
    return Placement(hosts, offline)


def leader_serves(recipe: Recipe) -> bool:
    """Whether the leading machine needs a `join --number 0`: it has producers of its own."""
    placement = place(recipe)
    users = recipe.regenerate_endpoint and recipe.train_endpoint
    return placement.is_spread and bool(placement.hosts[0].producers) and not users


def _rooms(recipe: Recipe, shares: list[int], room: int) -> list[int]:
    """GPUs of each machine that may be used.

    Where `host_gpus` does not say, a machine that trains is taken to have no more than it needs for
    that, if others are there.
    """
    if recipe.host_gpus is None and not all(shares):
        return [share or room for share in shares]
    return [room] * len(shares)


def _producers(busy: list[int], producers: int, rooms: list[int]) -> list[list[int]]:
    """GPUs of each machine that producers take.

    First the free ones beside trainers, whose rows need no network; then those of the other
    machines, in turn; then those of trainers.
    """
    taken: list[list[int]] = [[] for _ in busy]
    for _ in range(producers):
        free = [
            room - share - len(mine) for room, share, mine in zip(rooms, busy, taken, strict=True)
        ]
        beside = [n for n, count in enumerate(free) if count > 0 and busy[n]]
        most = max(free)
        if beside or most > 0:
            number = beside[0] if beside else max(n for n, c in enumerate(free) if c == most)
            taken[number].append(busy[number] + len(taken[number]))
            continue
        # No GPU is free: beside a trainer. There is room, as producers <= all GPUs.
        number, gpu = next(
            (n, gpu) for n, share in enumerate(busy) for gpu in range(share) if gpu not in taken[n]
        )
        taken[number].append(gpu)
    return taken


def _check_names(recipe: Recipe, names: tuple[str, ...]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"hosts names {twice} twice: each machine once, host_gpus for its GPUs.")
    if len(names) > 1 and (local := _LOCAL.intersection(names)):
        raise ConfigError(
            f"hosts names {local.pop()}, at which the other machines would find themselves: give "
            "the name or address at which they reach it."
        )
    if recipe.fsdp and recipe.trainers == 1:
        raise ConfigError("fsdp=true shards the drafter over trainers, and trainers=1: raise it.")


def _machines(names: tuple[str, ...]) -> str:
    return "1 machine" if len(names) == 1 else f"{len(names)} machines"
