"""AutoAdvNF: training, ensembles, contexts, and input that it refuses."""

import pickle
from functools import partial

import pytest
import torch
from support.discriminators import FixedTerms
from support.models import conjugate, conjugate_data
from torch.testing import assert_close
from variants import ADVERSARIAL_LOSSES

from pyro_flowsamp import (
    IMH,
    AutoAdvNF,
    AutoFlow,
    FitOptions,
    Target,
    VectorizedMCMC,
    lattice_discriminator,
    lattice_flow,
)
from pyro_flowsamp.flows.recipes import spline
from pyro_flowsamp.guides.advnf import GAN, AdvNFOptions, AdvNFWeights
from pyro_flowsamp.lattice import exact_xy_torus, xy, xy_energy, xy_model
from pyro_flowsamp.problems import mog4, mog8, rings4

SHORT = FitOptions(4, 32, 1e-3, eval_every=2, stop_at_ess=1.0, progress=False)
QUICK = FitOptions(  # without the warm-up, a run in about sixteen loses a mode
    120,
    192,
    5e-3,
    eval_every=40,
    cosine_schedule=True,
    warmup_fraction=0.1,
    stop_at_ess=1.0,
    progress=False,
)


# ---- the guide ----------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up, far", [(0.0, True), (1.0, False)])
def test_the_first_steps_throw_a_flow_out_of_narrow_modes(warm_up, far):
    """It starts as the right mixture; Adam's steps are as long as the rate all the same."""
    torch.manual_seed(0)
    known = mog8()
    options = FitOptions(5, 512, 3e-3, warmup_fraction=warm_up, stop_at_ess=1.0, progress=False)
    guide = AutoAdvNF(known.target, weights=AdvNFWeights(0, reverse=0), options=options)
    guide.fit(ensemble=known.sample(4000))
    nll = -guide.proposal().log_prob(known.sample(4000)).mean()
    assert (float(nll) - known.entropy > 0.4) == far


@pytest.mark.slow
def test_reverse_kl_collapses_where_advnf_does_not():
    """From N(0, I), with nothing of the target; the ensemble is the guide's own."""
    known = mog4()
    alone = AutoAdvNF(known.target, weights=AdvNFWeights(0, forward=0), options=QUICK)
    alone.fit()
    guide = AutoAdvNF(known.target, options=QUICK)
    guide.fit()
    assert guide.suspicion is None
    shares = [
        known.mode_fractions(g.proposal().sample_and_log_prob(4000)[0]) for g in (alone, guide)
    ]
    assert (shares[0] < 0.01).any() and (shares[1] - 0.25).abs().max() < 0.05
    nll = -guide.proposal().log_prob(known.sample(20_000)).mean()
    assert known.entropy - 0.05 < float(nll) < known.entropy + 0.05
    assert len(guide.trace) == QUICK.max_steps * 3 // 4  # after the pretraining
    mcmc = VectorizedMCMC(IMH(known.target, guide=guide), 50, 20, 200, disable_progbar=True)
    mcmc.run()
    found = torch.stack([known.mode_fractions(chain) for chain in mcmc.unconstrained])
    z = (found.mean(0) - 0.25) / (found.std(0) / len(found) ** 0.5)
    assert z.abs().max() < 4


@pytest.mark.parametrize(
    "loss", [GAN, *ADVERSARIAL_LOSSES.values()], ids=["gan", *ADVERSARIAL_LOSSES]
)
@pytest.mark.parametrize("weights", [(0.5, 1.0), (0.5, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_every_variant_trains(loss, weights):
    reverse, forward = weights
    chosen = AdvNFWeights(reverse=reverse, forward=forward)
    guide = AutoAdvNF(mog4().target, weights=chosen, loss=loss, options=SHORT)
    history = guide.fit(ensemble=mog4().sample(100))
    assert history.steps == 4 and history.skipped == 0 and guide.trained
    assert len(guide.trace) == (3 if reverse or forward else 4)


def test_a_schedule_of_ones_own():
    seen = []

    def schedule(progress):
        seen.append(progress)
        return 10 * progress

    guide = AutoAdvNF(
        mog4().target,
        weights=AdvNFWeights(adversarial=schedule),
        settings=AdvNFOptions(pretraining=0.5),
        options=SHORT,
    )
    guide.fit(ensemble=mog4().sample(100))
    assert seen == [0.5, 0.75]
    assert_close(guide.trace[:, 0], torch.tensor([5.0, 7.5]))


@pytest.mark.slow
def test_one_flow_for_all_temperatures():
    """Ensembles of its own, the periodic discriminator; then exact at values in between."""
    options = FitOptions(80, 128, 5e-3, cosine_schedule=True, stop_at_ess=1.0, progress=False)
    guide = AutoAdvNF(
        xy_model,
        context=["temperature"],
        flow=lattice_flow((2, 2)),
        discriminator=lattice_discriminator((2, 2), (8,), (8,)),
        options=options,
    )
    guide.fit((2, 2), temperature=torch.linspace(0.4, 2.0, 8))
    temperatures = torch.tensor([0.5, 1.0])
    mcmc = VectorizedMCMC(IMH(xy_model, guide=guide), 100, 50, 800, disable_progbar=True)
    mcmc.run((2, 2), temperature=temperatures)
    energy = xy_energy(mcmc.unconstrained, (2, 2)).double().mean(1).unflatten(0, (-1, 2)) / 4
    for i, t in enumerate((0.5, 1.0)):
        expected = exact_xy_torus((2, 2), t).energy
        z = (energy[:, i].mean() - expected) / (energy[:, i].std() / len(energy) ** 0.5)
        assert abs(float(z)) < 4
    assert mcmc.statistics["accepted"].double().mean() > 0.3


def test_ensembles_by_context():
    made = AutoAdvNF(xy_model, context=["temperature"], flow=lattice_flow((2, 2)), options=SHORT)
    theta = 2 * torch.rand(3, 50, 2, 2) - 1
    made.fit((2, 2), temperature=torch.tensor([0.5, 1.0, 2.0]), ensemble={"theta": theta})
    with pytest.raises(ValueError, match=r"\(150, 4\), expected \(3, M, 4\): M > 1 draws at each"):
        made.fit((2, 2), temperature=torch.ones(3), ensemble=theta.reshape(150, 4))


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_arguments():
    make = partial(AutoAdvNF, mog4().target)
    for name in ("adversarial", "reverse", "forward"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
            AdvNFWeights(**{name: -1.0})
    with pytest.raises(ValueError, match="nothing to train"):
        AdvNFWeights(adversarial=0, reverse=0, forward=0)
    with pytest.raises(ValueError, match="'auto', a number or a function, got 'much'"):
        AdvNFWeights(adversarial="much")
    with pytest.raises(TypeError, match="loss must be an AdversarialLoss.*got 'l2'"):
        make(loss="l2")
    with pytest.raises(ValueError, match="unknown flow 'planar'"):
        make(flow="planar")
    with pytest.raises(ValueError, match="pretraining is a part"):
        AdvNFOptions(pretraining=1.0)
    with pytest.raises(ValueError, match="balance_every must be positive, got 0"):
        AdvNFOptions(balance_every=0)


def test_bad_ensembles():
    guide, draws = AutoAdvNF(mog4().target, options=SHORT), mog4().sample(100)
    with pytest.raises(ValueError, match=r"shape \(100, 3\), expected \(M, 2\)"):
        guide.fit(ensemble=torch.zeros(100, 3))
    with pytest.raises(ValueError, match=r"shape \(1, 2\), expected"):
        guide.fit(ensemble=draws[:1])
    with pytest.raises(ValueError, match="nothing to learn of an ensemble"):
        AutoAdvNF(mog4().target, weights=AdvNFWeights(0, forward=0)).fit(ensemble=draws)
    draws[3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 draws of the ensemble are not finite"):
        guide.fit(ensemble=draws)
    with pytest.raises(ValueError, match="no value for site 'x'"):
        guide.fit(ensemble={"y": draws})


def fit_advnf(ensemble):
    return AutoAdvNF(conjugate, options=SHORT).fit(*conjugate_data(), ensemble=ensemble)


def fit_flow(ensemble):
    return AutoFlow(conjugate, ensemble=ensemble, options=SHORT).fit(*conjugate_data())


def conjugate_draws(*shape):
    return {"rate": torch.rand(shape) + 2, "mean": torch.randn(shape)}


def spoilt(**values):
    """One draw of 50 is not as it should be."""
    draws = conjugate_draws(50)
    for name, value in values.items():
        draws[name][3] = value
    return draws


both_guides = pytest.mark.parametrize("train", [fit_advnf, fit_flow])


@both_guides
@pytest.mark.parametrize(
    "ensemble, message",
    [
        (spoilt(rate=0.0), "1 draws of the ensemble are not finite, or on the edge"),
        (spoilt(mean=torch.nan), "1 draws of the ensemble are not finite"),
        (conjugate_draws(1), r"shape \(1, 2\), expected \(M, 2\): M > 1 draws$"),
        (conjugate_draws(4, 50), r"shape \(4, 50, 2\), expected \(M, 2\)"),
        (torch.randn(50, 3), r"shape \(50, 3\), expected \(M, 2\)"),
        (torch.randn(50), r"shape \(50,\), expected \(M, 2\)"),
        (torch.ones(50, 2), "all 50 draws of the ensemble are the same"),
        ([torch.randn(50, 2)], r"must be draws \{site: .*got list"),
        ({"rate": torch.rand(50)}, "no value for site 'mean'"),
        (lambda target: None, "got NoneType"),
    ],
)
def test_ensembles_that_either_guide_refuses(train, ensemble, message):
    with pytest.raises(ValueError, match=message):
        train(ensemble)


@both_guides
@pytest.mark.parametrize(
    "ensemble",
    [
        conjugate_draws(50),
        torch.randn(50, 2),
        torch.randn(50, 2, dtype=torch.double),
        torch.randn(50, 2).numpy(),
        lambda target: conjugate_draws(50),
        lambda target: torch.randn(50, target.dim),
    ],
    ids=["draws", "points", "of another type", "of numpy", "made draws", "made points"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ensembles_that_either_guide_takes(train, ensemble):
    assert train(ensemble).steps >= SHORT.max_steps


def test_an_ensemble_in_one_mode_is_suspect():
    known = mog4()
    guide = AutoAdvNF(known.target, options=SHORT)
    with pytest.warns(UserWarning, match="may have missed modes"):
        guide.fit(ensemble=known.modes[0] + torch.randn(500, 2))
    assert "far from all of them" in guide.suspicion
    guide.fit(ensemble=known.sample(500))
    assert guide.suspicion is None
    rings = AutoAdvNF(rings4().target, options=SHORT)
    rings.fit(ensemble=rings4().sample(500))
    assert rings.suspicion is None


def test_the_adversary_is_not_kept_waiting_by_a_flow_that_is_good_enough():
    """A collapsed flow has importance weights as flat as a good one's."""
    options = FitOptions(8, 32, 1e-3, eval_every=1, stop_at_ess=1e-9, progress=False)
    guide = AutoAdvNF(
        mog4().target,
        weights=AdvNFWeights(forward=0),
        settings=AdvNFOptions(pretraining=0.5),
        options=options,
    )
    assert guide.fit(ensemble=mog4().sample(100)).steps == 5 and len(guide.trace) == 1


def test_circular_flows_need_angles():
    with pytest.raises(ValueError, match="the target has no angles"):
        AutoAdvNF(mog4().target, flow="circular", options=SHORT).fit()


def test_guides_pickle():
    made = AutoAdvNF(
        xy_model,
        context=["temperature"],
        flow=lattice_flow((2, 2)),
        discriminator=lattice_discriminator((2, 2), (4,), (4,)),
        options=SHORT,
    )
    made.fit((2, 2), temperature=torch.tensor([0.5, 1.0]), ensemble=lambda t: torch.rand(2, 9, 4))
    made.set_extra_state(made.get_extra_state())
    copy = pickle.loads(pickle.dumps(made))
    copy.restore_model(xy_model)
    x = torch.rand(5, 4)
    for temperature in (torch.tensor(0.7), torch.tensor([0.7])):
        proposals = [g.proposal((2, 2), temperature=temperature) for g in (made, copy)]
        assert_close(*(p.log_prob(x) for p in proposals))


@pytest.mark.slow
def test_a_warning_of_a_saturated_discriminator():
    """A flow far from the ensemble, and one that tells them apart from the start."""
    options = FitOptions(400, 32, 1e-6, eval_every=50, stop_at_ess=1.0, progress=False)
    guide = AutoAdvNF(
        mog4().target,
        flow=lambda features, context: spline(features, context, transforms=2),
        weights=AdvNFWeights(forward=0),
        settings=AdvNFOptions(pretraining=0),
        discriminator=FixedTerms(50.0, -2500.0),
        options=options,
    )
    draws = torch.tensor([[100.0, 0.0]]) + torch.randn(100, 2)
    guide.target_for()
    guide.trained = True  # so that it does not start from the ensemble
    with pytest.warns(UserWarning, match="was paused for"):
        guide.fit(ensemble=draws)


def test_odd_lattices_need_no_checkerboard():
    """Sites come one by one where a size is odd; where those are too many it is said."""
    target = xy((3, 3)).target
    guide = AutoAdvNF(target, flow=lattice_flow((3, 3)), options=SHORT)
    guide.fit()
    with pytest.raises(ValueError, match="divisible by a power of two"):
        lattice_flow((9, 9))


def test_a_target_without_density():
    target = Target.from_energy(lambda x: x.sum(-1) * torch.nan, 2)
    with pytest.raises(ValueError, match="NaN or -inf at every initial point"):
        AutoAdvNF(target, weights=AdvNFWeights(0, forward=0), options=SHORT).fit()
