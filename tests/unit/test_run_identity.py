"""What makes two runs the same run: losses and layers that no tensor's shape tells apart."""

from __future__ import annotations

from types import SimpleNamespace

from speculators_patches.step_checkpoints.identity import _architecture, _plain, model_fields


def kl(): ...  # type: ignore[no-untyped-def]


def ce(): ...  # type: ignore[no-untyped-def]


def test_another_loss_or_weight_is_another_setting() -> None:
    known = _plain({"kl_div": (kl, 1.0)})
    assert known == _plain({"kl_div": (kl, 1.0)})
    assert known != _plain({"kl_div": (ce, 1.0)})
    assert known != _plain({"kl_div": (kl, 0.5)})
    assert known != _plain({"kl_div": (kl, 1.0), "ce": (ce, 1.0)})


def test_another_layer_of_the_same_shape_is_another_model() -> None:
    def config(theta: float, place: str = "a", **more: object) -> SimpleNamespace:
        told = {"rope_theta": theta, "_name_or_path": place}
        layer = SimpleNamespace(to_dict=lambda: told, _attn_implementation="sdpa")
        return SimpleNamespace(transformer_layer_config=layer, **more)

    known = _architecture(config(1e4))
    assert known == _architecture(config(1e4, "elsewhere"))
    assert known != _architecture(config(1e6))
    assert known != _architecture(config(1e4, norm_before_residual=True))


def test_another_teacher_is_another_run() -> None:
    def names(**head: float) -> dict[str, object]:
        return {
            f.name: f.value
            for f in model_fields(SimpleNamespace(verifier_lm_head=SimpleNamespace(**head)))
        }

    assert "teacher.softcap" not in names()
    assert names(final_logit_softcapping=30.0)["teacher.softcap"] == 30.0
