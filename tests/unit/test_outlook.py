"""`plan` for several GPUs and machines: the arithmetic, what it prints, what it refuses."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scale_trainers, transfer, transfer_arms
from recipes import environment, gemma4_abliterated, stages
from recipes.config import ConfigError, resolve
from recipes.spread import interfaces, outlook, refusals
from recipes.spread.model import Rates, bounds, fit, of_parts
from recipes.spread.placement import place

RATES = Rates(0.0, 1e-4, 4e8, 50e9, 1.25e9, 22_528, producer_tokens_s=5000.0)


def recipe(*settings: str, preset: str = "h100"):
    return resolve(preset, None, list(settings))[0]


def said(tmp_path: Path, *settings: str, preset: str = "h100") -> list[str]:
    return list(outlook.lines(recipe(*settings, preset=preset), preset, tmp_path))


# ---- the model ----


def first(rates: Rates, *settings: str) -> tuple[str, float]:
    placement = place(recipe(*settings))
    bound = bounds(rates, placement, 4096)[0]
    return bound.what, bound.tokens_s


def test_each_part_can_be_the_one_that_holds_back() -> None:
    spread = ("hosts=a,b", "trainers=1", "producers=4")
    assert first(RATES, "producers=1", "host_gpus=2") == ("producers", 5000.0)
    what, pace = first(replace(RATES, producer_tokens_s=50_000.0), "host_gpus=2")
    assert (what, pace) == ("trainers", pytest.approx(1e4))
    what, pace = first(replace(RATES, network_bytes_s=22_528e3), *spread)
    assert (what, pace) == ("network", pytest.approx(1000))
    what, pace = first(replace(RATES, disk_bytes_s=22_528e3), *spread)
    assert (what, pace) == ("disk", pytest.approx(500))  # written and read
    # On one GPU a token costs both times.
    what, pace = first(RATES)
    assert (what, pace) == ("a GPU that trainer and producer share", pytest.approx(10_000 / 3))


def test_a_shared_gpu_produces_only_what_the_free_ones_leave() -> None:
    """T/c + (T - free)/p = 1 for one trainer (c) whose GPU has a producer (p) too."""
    c, p = 1e4, 5000.0
    for producers in (1, 2, 3):
        what, pace = first(RATES, f"producers={producers}", f"host_gpus={producers}")
        assert what == "a GPU that trainer and producer share"
        free = (producers - 1) * p
        if free < c:
            assert pace / c + (pace - free) / p == pytest.approx(1)
            continue
    # Enough comes from the free ones: the trainer has its GPU to itself.
    assert first(RATES, "producers=8", "host_gpus=8") == ("trainers", pytest.approx(c))


@given(
    trainers=st.integers(1, 8), producers=st.integers(1, 8), gpus=st.integers(1, 8),
    rate=st.floats(10, 1e6),
)  # fmt: skip
def test_work_for_whoever_is_free_is_never_slower_than_equal_parts(
    trainers: int, producers: int, gpus: int, rate: float
) -> None:
    rates = replace(RATES, producer_tokens_s=rate)
    try:
        placement = place(
            recipe(f"trainers={trainers}", f"producers={producers}", f"host_gpus={gpus}")
        )
    except ConfigError:
        return
    pace = bounds(rates, placement, 4096)[0].tokens_s
    consumed = trainers * 4096 / rates.step_s(4096, trainers)
    shared = len(placement.hosts[0].shared)
    both = 1 / (1 / rate + trainers / consumed)
    equal = (producers - shared) * rate + shared * both
    least = min(trainers * both if shared else consumed, equal)
    assert least * (1 - 1e-9) <= pace <= min(consumed, producers * rate) * (1 + 1e-9)


def test_no_more_producers_work_than_rows_are_asked_for() -> None:
    given = outlook.rates(recipe("num_workers=3", "producers=3", "producer_tokens_s=100"), "h100")
    assert given.requests == 3
    placement = place(recipe("producers=8", "host_gpus=9"))
    assert bounds(given, placement, 4096)[0].tokens_s == pytest.approx(300)
    # Upstream's own number of workers, and one row at a time without any.
    assert outlook.rates(recipe(), "h100").requests == 12
    assert outlook.rates(recipe("num_workers=0"), "h100").requests == 1
    two = place(recipe("trainers=2", "producers=8", "host_gpus=10"))
    assert bounds(replace(given, requests=1), two, 4096)[0].tokens_s == pytest.approx(200)


def test_files_in_a_shared_folder_cross_the_network_wherever_they_were_made() -> None:
    both = ("hosts=a,b", "trainers=2", "producers=2", "host_gpus=1")
    slow = replace(RATES, network_bytes_s=22_528e3, gradient_bytes=0.0, disk_bytes_s=1e12)
    assert first(slow, *both) == ("network", pytest.approx(2000))  # half of it stays with Mooncake
    home = ("hosts=a,b", "trainers=2", "producers=4", "host_gpus=3", "network_gbit=0.005")
    with pytest.raises(ConfigError, match="and take transfer=mooncake"):
        refusals.check(recipe(*home), "h100", Path("/nowhere"))


def test_the_plan_says_that_every_file_crosses(tmp_path: Path) -> None:
    both = ("hosts=a,b", "trainers=2", "producers=2", "host_gpus=1", "producer_tokens_s=5000",
            "train_vllm_share=0.5")  # fmt: skip
    assert "100 % of it between machines" in "\n".join(said(tmp_path, *both))
    assert "50 % of it between" in "\n".join(said(tmp_path, *both, "transfer=mooncake"))


def test_the_plan_says_what_starts_the_leaders_own_producers(tmp_path: Path) -> None:
    own = ("hosts=a,b", "trainers=1", "producers=4", "host_gpus=4")
    assert any("  on a too" in one and "join --number 0" in one for one in said(tmp_path, *own))
    users = ("train_endpoint=http://c:8100", "regenerate_endpoint=http://c:8101")
    for other in ((*own, *users), ("hosts=a,b",), ("trainers=2",)):
        assert "--number 0" not in "\n".join(said(tmp_path, *other))
    assert "--number 0" in gemma4_abliterated.join.__doc__


def test_the_leader_says_what_starts_its_own_producers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(stages.STAGES, "prepare", lambda ctx: None)

    def lead(*settings: str) -> str:
        run = tmp_path / str(len(settings))
        gemma4_abliterated._run(["prepare"], run, "h100", None, ["hosts=a,b", *settings])
        return "".join(capfd.readouterr())

    assert "join --number 0 --run-dir" in lead("producers=4", "host_gpus=4")
    assert "join" not in lead()


def test_half_of_the_rows_stay_at_home_where_both_machines_do_both() -> None:
    both = ("hosts=a,b", "trainers=2", "producers=2", "host_gpus=1")
    slow = replace(RATES, network_bytes_s=22_528e3, gradient_bytes=0.0)
    assert first(slow, *both) == ("network", pytest.approx(4000))
    # Gradients cross the same links: here as many bytes a step as hidden states.
    shared = replace(slow, gradient_bytes=22_528.0 * 2048)
    assert first(shared, *both) == ("network", pytest.approx(2000))


def test_the_exchange_of_gradients_is_what_a_ring_moves() -> None:
    assert RATES.step_s(1000) == pytest.approx(0.1)
    assert RATES.step_s(1000, 4) == pytest.approx(0.1 + 1.5 * 4e8 / 50e9)
    assert RATES.step_s(1000, 16, machines=2) == pytest.approx(0.1 + 2 * 15 / 16 * 4e8 / 1.25e9)


@given(
    fixed=st.floats(0, 1),
    token=st.floats(1e-6, 1e-2),
    link=st.floats(1e6, 1e11),
    gradient=st.floats(1e6, 1e9),
)
def test_a_fit_finds_the_rates_that_made_the_steps(
    fixed: float, token: float, link: float, gradient: float
) -> None:
    made = replace(RATES, step_fixed_s=fixed, step_token_s=token, gradient_bytes=gradient,
                   exchange_bytes_s=link)  # fmt: skip
    rows = [(k, n, made.step_s(n, k)) for k in (1, 2) for n in (64, 512)]
    found = fit(rows, gradient, RATES)
    for trainers, tokens in ((1, 200), (2, 200), (8, 4096)):
        assert found.step_s(tokens, trainers) == pytest.approx(
            made.step_s(tokens, trainers), rel=1e-3
        )


@given(gpus=st.sampled_from([1, 8, 16, 64]), rate=st.floats(100, 1e5), disk=st.booleans())
def test_no_split_is_faster_than_the_best_one(gpus: int, rate: float, disk: bool) -> None:
    one = recipe(f"transfer={'file' if disk else 'mooncake'}")
    given_rates = replace(RATES, producer_tokens_s=rate)
    placement, limits = outlook.best(one, given_rates, gpus)
    used = sum(h.trainers + len(h.producers) - len(h.shared) for h in placement.hosts)
    assert used == gpus
    for trainers in (1, gpus // 2 or 1):
        other = replace(
            one, trainers=trainers, producers=max(1, gpus - trainers), host_gpus=min(gpus, 8),
            hosts=tuple(f"m{n}" for n in range(gpus // 8)) if gpus > 8 else (),
        )  # fmt: skip
        try:
            spread = place(other)
        except ConfigError:
            continue
        share = one.disk_mb * 1e6 if disk and spread.is_spread else None
        pace = bounds(replace(given_rates, disk_bytes_s=share), spread, one.seq_len)[0]
        assert pace.tokens_s <= limits[0].tokens_s * (1 + 1e-9)


def test_the_stated_error_is_that_of_the_measured_rows(tmp_path: Path) -> None:
    """The result file, the model as it is now and what `plan` prints say the same."""
    found = json.loads(scale_trainers.RESULT.read_text("utf-8"))
    rows = scale_trainers.predictions(found["rows"], found["gradient_bytes"])
    unseen = [abs(row["error"]) for row in rows if not row["fitted"]]
    assert {row["trainers"] for row in rows if not row["fitted"]} == {1, 2}
    assert max(unseen) == pytest.approx(found["largest_error_on_unseen"])
    seen = max(abs(row["error"]) for row in rows if row["fitted"])
    stated = f"trainers by at most {100 * max(unseen):.0f} %"
    if seen > max(unseen):  # the fit is no better than what it foretells
        stated += f" on rows that were not fitted and {100 * seen:.0f} % on those that were"
    readme = (outlook.RESULTS.parent / "README.md").read_text("utf-8")
    assert (
        f"up to {100 * max(unseen):.0f} % on those between and by {100 * seen:.0f} % on" in readme
    )
    assert any(stated in line for line in said(tmp_path, "trainers=2"))


def test_a_result_names_no_folder_of_the_machine_that_made_it(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/home/me/x.py", "--rows", "8", "--out", "/home/me/a b.json"])
    told = environment.command_line("benchmarks.transfer")
    assert told == "python -m benchmarks.transfer --rows 8 --out 'a b.json'"
    for path in (scale_trainers.RESULT, transfer.RESULT):
        command = json.loads(path.read_text("utf-8"))["command"]
        assert command == f"python -m benchmarks.{path.stem}"


def test_the_stated_error_of_whole_pipelines_is_that_of_the_measured_arms(tmp_path: Path) -> None:
    found = json.loads(transfer.RESULT.read_text("utf-8"))
    told = transfer_arms.predictions(
        found["arms"], found["settings"]["tokens"], found["gradient_bytes"]
    )
    assert found["model"] == told
    assert len([row for row in told if not row["fitted"]]) == 10
    error = transfer_arms.largest_error(told)
    assert error == pytest.approx(found["largest_error_on_unseen"])
    readme = (outlook.RESULTS.parent / "README.md").read_text("utf-8")
    assert transfer_arms.table(found["arms"], told) in readme
    assert found["machine"] in readme  # whose samples/s those are
    stated = f"producers by at most {100 * error:.0f} %"
    assert any(stated in line for line in said(tmp_path, "producers=2"))


@given(
    alone=st.floats(0.01, 1), more=st.floats(0, 1), producer=st.floats(10, 1e4),
    producers=st.sampled_from([1, 2, 3]), trainers=st.sampled_from([1, 2]),
)  # fmt: skip
def test_parts_that_were_measured_alone_make_the_whole(
    alone: float, more: float, producer: float, producers: int, trainers: int
) -> None:
    rates = of_parts(100, alone, alone + more, 4e8, producer)
    placement = place(
        recipe(f"producers={producers}", f"trainers={trainers}", "host_gpus=5")
    )  # fmt: skip
    pace = bounds(rates, placement, 100)[0].tokens_s
    step = alone if trainers == 1 else alone + more
    assert pace == pytest.approx(min(producers * producer, trainers * 100 / step), rel=1e-6)


# ---- what is printed ----


def test_one_trainer_and_one_producer_are_planned_as_before() -> None:
    assert not outlook.is_several(recipe())
    assert outlook.is_several(recipe("producers=2"))


def test_the_plan_says_who_where_and_what_flows(tmp_path: Path) -> None:
    lines = said(
        tmp_path, "hosts=a,b", "trainers=4", "producers=8", "transfer=mooncake",
        "producer_tokens_s=20000", "network_gbit=10",
    )  # fmt: skip
    text = "\n".join(lines)
    assert "  a: 4 trainers on GPU 0-3 (about 11.5 GB each), leads" in lines
    assert "  b: 8 producers on GPU 0-7 (40 of 80 GB each)" in lines
    assert "22.5 kB a token" in text
    assert "100 % of it between machines" in text
    assert "held back by: network" in text
    # 8 producers of 20k tokens/s, less than 4 trainers read: what they would need of the link.
    assert "network: 10 Gbit/s does not carry it" in text
    assert "takes 29 Gbit/s" in text
    for gpus in ("  1 on 1 machine:", "  8 on 1 machine:", "  64 on 8 machines:"):
        assert any(line.startswith(gpus) for line in lines)
    fast = said(
        tmp_path, "hosts=a,b", "trainers=4", "producers=8", "transfer=mooncake",
        "producer_tokens_s=20000", "network_gbit=100",
    )  # fmt: skip
    assert "network: 100 Gbit/s carries it" in fast


def test_what_nobody_measured_is_called_that(tmp_path: Path) -> None:
    text = "\n".join(said(tmp_path, "trainers=2"))
    assert "producers: not measured on this machine" in text
    assert "an H200's gave 29,500 to 31,900" in text
    assert "(assumed)" in text
    spark = "\n".join(said(tmp_path, "hosts=a,b", preset="dgx-spark"))
    assert "pace: at least 1,179 tokens/s" in spark
    longer = "\n".join(said(tmp_path, "hosts=a,b", "ttt_steps=5", preset="dgx-spark"))
    assert "pace: at least 710 tokens/s" in longer
    assert "a trainer: 107,789 tokens/s (upstream's trainer on an H200, 0.043 with another " in text
    five = "\n".join(said(tmp_path, "trainers=2", "ttt_steps=5"))
    assert "a trainer: 68,518 tokens/s (upstream's trainer on an H200, 0.043 with another" in five
    assert "best split" not in spark


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["producers=2", "train_vllm_share=0.3"], "24 GB, and the body's weights alone take 27"),
        (["train_vllm_share=0.95"], "do not fit on one GPU of 80 GB"),
        (["hosts=a,b", "network_gbit=0.005"], "take 148 s over it, longer than request_timeout"),
        (["hidden_states=offline", "transfer=mooncake"], "wants them as files"),
        (["trainers=3", "host_gpus=2"], "need a GPU each"),
        (["transfer=mooncake", "mooncake_segment_gib=0.1"], "fewer than 2 rows of hidden states"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path, settings, part) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        refusals.check(recipe(*settings), "h100", tmp_path)
    assert part in str(refused.value)


def test_a_share_too_large_for_two_is_fine_where_each_has_its_gpu(tmp_path: Path) -> None:
    refusals.check(recipe("train_vllm_share=0.95", "host_gpus=2"), "h100", tmp_path)


def test_mooncake_memory_beyond_the_machines_is_refused(tmp_path: Path) -> None:
    several = recipe("hosts=a,b", "transfer=mooncake", "mooncake_segment_gib=80")
    refusals.check(several, "h100", tmp_path)  # its host's memory is not known here
    with pytest.raises(ConfigError, match="do not fit into its 121 GB of memory: lower one"):
        refusals.check(several, "dgx-spark", tmp_path)


def test_the_miniature_is_of_one_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one machine"):
        refusals.check(recipe("hosts=a,b", preset="miniature"), "miniature", tmp_path)


def test_a_run_folder_that_the_others_do_not_see_is_refused(tmp_path: Path, monkeypatch) -> None:
    here = socket.gethostname()
    both = recipe(f"hosts={here},other")
    monkeypatch.setattr(socket, "gethostbyname", addresses({here: "192.0.2.1"}))
    monkeypatch.setattr(refusals, "filesystem", lambda path: "ext4")
    with pytest.raises(ConfigError, match="is on ext4, which the other hosts don't see"):
        refusals.check(both, "h100", tmp_path)
    monkeypatch.setattr(refusals, "filesystem", lambda path: "nfs4")
    refusals.check(both, "h100", tmp_path)
    # Planned elsewhere: this machine's folders say nothing.
    monkeypatch.setattr(refusals, "filesystem", lambda path: "ext4")
    refusals.check(recipe("hosts=one,other"), "h100", tmp_path)


def addresses(known: dict[str, str]) -> Callable[[str], str]:
    """A resolver that knows these names."""

    def find(name: str) -> str:
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return known[name]

    return find


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("transfer", ["file", "mooncake"])
def test_a_name_that_means_this_machine_alone_is_refused(
    tmp_path: Path, monkeypatch, address: str, transfer: str
) -> None:
    """Debian's entry for a machine's own name, on whichever machine it is run."""
    monkeypatch.setattr(socket, "gethostbyname", addresses({"b": address, "c": "192.0.2.9"}))
    settings = (f"transfer={transfer}", "trainers=2", "host_gpus=1")
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        refusals.check(recipe("hosts=a,b", "producers=2", *settings), "h100", tmp_path)
    assert f"hosts names b, which is {address} on this machine" in str(refused.value)
    assert "/etc/hosts" in str(refused.value)
    refusals.check(recipe("hosts=a,c", "producers=2", *settings), "h100", tmp_path)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ("", False),  # one trainer, and b produces: a only asks
        ("trainers=2", False),
        ("transfer=mooncake", True),  # its master
        ("transfer=mooncake mooncake_master=store:50051", False),
        ("trainers=2 producers=2 host_gpus=1 train_vllm_share=0.6", True),  # trainers on both
        ("producers=3 host_gpus=2", True),  # a producer there too
    ],
)
def test_a_leader_whom_nobody_has_to_reach_may_be_loopback_to_itself(
    tmp_path: Path, monkeypatch, settings: str, refused: bool
) -> None:
    """An ordinary Debian machine that trains beside one that produces."""
    monkeypatch.setattr(socket, "gethostbyname", addresses({"a": "127.0.1.1", "b": "192.0.2.2"}))
    asked = recipe("hosts=a,b", *settings.split())
    if refused:
        with pytest.raises(ConfigError, match=r"^hosts names a, which is 127\.0\.1\.1 on this"):
            refusals.check(asked, "h100", tmp_path)
    else:
        refusals.check(asked, "h100", tmp_path)


def test_rows_that_many_machines_read_from_one_must_come_in_time(tmp_path: Path) -> None:
    """Four machines train, 12 workers each; the fifth sends all of their 48 rows."""
    spread = ("hosts=a,b,c,d,e", "trainers=4", "host_gpus=1", "transfer=mooncake")
    refusals.check(recipe(*spread, "network_gbit=1"), "h100", tmp_path)
    with pytest.raises(ConfigError, match="the 48 rows that workers read at once from one") as no:
        refusals.check(recipe(*spread, "network_gbit=0.5"), "h100", tmp_path)
    assert "--set num_workers=10, or" in str(no.value)
    refusals.check(recipe(*spread, "network_gbit=0.5", "num_workers=10"), "h100", tmp_path)


def test_shares_of_rows_are_counted_exactly(tmp_path: Path) -> None:
    """A third of two trainers' 24 rows is 8, of which 7.4 s each are 59 s; 9 would be too many."""
    spread = ("hosts=a,b", "trainers=2", "producers=3", "host_gpus=4", "transfer=mooncake")
    refusals.check(recipe(*spread, "network_gbit=0.1"), "h100", tmp_path)


@pytest.mark.parametrize("gbit", [0.02 + 0.005 * step for step in range(30)])
def test_the_number_of_workers_that_a_refusal_names_is_taken(tmp_path: Path, gbit: float) -> None:
    """Also where a part of the rows crosses the link: two trainers, a third of them."""
    spread = ("hosts=a,b", "trainers=2", "producers=3", "host_gpus=4", "transfer=mooncake")
    settings = (*spread, f"network_gbit={gbit}")
    try:
        refusals.check(recipe(*settings), "h100", tmp_path)
    except ConfigError as error:
        found = re.search(r"--set (num_workers=\d+)", str(error))
        if found:
            refusals.check(recipe(*settings, found[1]), "h100", tmp_path)


def test_a_command_for_another_machine_is_refused(monkeypatch) -> None:
    hosts = ("a", "b", "c")
    monkeypatch.setattr(interfaces, "of", lambda name: "eth0" if name == "b" else None)
    refusals.check_is(hosts, 1)
    with pytest.raises(ConfigError, match="this machine is b, number 1 of hosts, and a leads and"):
        refusals.check_is(hosts, 0)
    with pytest.raises(ConfigError, match="c is number 2: here it is `join --number 1`"):
        refusals.check_is(hosts, 2)
    # One that plays several is each of them; of an unknown one nothing is known.
    monkeypatch.setattr(interfaces, "of", lambda name: "lo")
    refusals.check_is(hosts, 2)
    monkeypatch.setattr(interfaces, "of", lambda name: None)
    refusals.check_is(hosts, 2)


def test_one_machine_under_two_names_is_refused(tmp_path: Path, monkeypatch) -> None:
    known = {"a": "192.0.2.1", "a.cluster": "192.0.2.1", "b": "192.0.2.2"}
    monkeypatch.setattr(socket, "gethostbyname", addresses(known))
    refusals.check(recipe("hosts=a,b"), "h100", tmp_path)
    with pytest.raises(ConfigError, match=r"^hosts names a and a\.cluster, which are one machine"):
        refusals.check(recipe("hosts=a,a.cluster"), "h100", tmp_path)


def test_machines_that_all_are_loopback_addresses_are_one_that_plays_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    refusals.check(recipe("hosts=127.0.0.2,127.0.0.3"), "h100", run)
    with pytest.raises(ConfigError, match=r"hosts names 127\.0\.0\.2, which is 127\.0\.0\.2 on"):
        refusals.check(recipe("hosts=127.0.0.2,192.0.2.1"), "h100", run)


def test_rows_that_workers_read_at_once_must_come_in_time(tmp_path: Path) -> None:
    """One gigabit, 24 workers on the machine that trains, 92 MB a row: 18 s. A tenth of it: 177."""
    spread = ("hosts=a,b", "trainers=2", "producers=2", "transfer=mooncake")
    refusals.check(recipe(*spread, "network_gbit=1"), "h100", tmp_path)
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        refusals.check(recipe(*spread, "network_gbit=0.1"), "h100", tmp_path)
    assert "the 24 rows that workers of one machine read at once take 177 s" in str(refused.value)
    assert "--set num_workers=4, or take a faster link" in str(refused.value)
    refusals.check(recipe(*spread, "network_gbit=0.1", "num_workers=4"), "h100", tmp_path)
    # Beside its producers a trainer reads through no link.
    home = ("transfer=mooncake", "network_gbit=0.1", "trainers=2", "producers=2")
    refusals.check(recipe(*home), "h100", tmp_path)
    # Half of them are read from the machine's own producer.
    half = (*spread, "host_gpus=1", "train_vllm_share=0.6")
    with pytest.raises(ConfigError, match="the 6 rows that workers of one machine read at once"):
        refusals.check(recipe(*half, "network_gbit=0.05"), "h100", tmp_path)
    # Files are read over it too, and swept away 60 s after a request's time-out.
    files = tuple(one for one in spread if "transfer" not in one)
    refusals.check(recipe(*files, "network_gbit=0.1"), "h100", tmp_path)
    with pytest.raises(ConfigError, match="a file of 180 s is swept away as left over") as refused:
        refusals.check(recipe(*files, "network_gbit=0.05"), "h100", tmp_path)
    assert "--set num_workers=6, or take a faster link" in str(refused.value)
    refusals.check(recipe(*files, "network_gbit=0.05", "num_workers=6"), "h100", tmp_path)
    # One row takes so long that no number of workers helps.
    with pytest.raises(ConfigError, match="asked for again and again: take a faster link"):
        refusals.check(recipe(*spread, "network_gbit=0.01"), "h100", tmp_path)


def test_the_filesystem_is_that_of_the_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} nfs4 rw 0 0\nc {tmp_path}x xfs rw 0 0\n")
    assert refusals.filesystem(tmp_path / "not" / "yet", mounts) == "nfs4"
    assert refusals.filesystem(Path("/"), mounts) == "ext4"
    assert refusals.filesystem(Path("/"), tmp_path / "none") == ""
