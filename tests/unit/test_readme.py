"""What the README claims is what the result files say."""

import json

from recipes.miniature.readme_table import RESULT, ROOT, with_table


def test_the_readmes_table_is_the_committed_result():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_table(readme) == readme


def test_the_experiment_log_quotes_the_committed_result():
    log = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    verdicts = json.loads(RESULT.read_text("utf-8"))["verdict"]
    for verdict in verdicts:
        if verdict["temperature"] == 0:
            quoted = " -> ".join(
                f"{verdict[arm]:.3f}".lstrip("0")
                for arm in ("a_vanilla", "a_abliterated", "b_abliterated")
            )
            assert quoted in log


def test_committed_results_say_what_they_were_made_with():
    made = json.loads(RESULT.read_text("utf-8"))["made_with"]
    assert made["versions"]["speculators"] == "0.9.0"
    assert made["processor"]
    assert made["commit"]
