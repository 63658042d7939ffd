"""The studies of docs/evidence.md, their targets and their parities. `evidence.py` runs them."""

from evidence_types import BEST_DMD, FOLLOWED, Parity, Study, Target

from amd_plugin.evaluate.comparison.arms import VARIANTS

W = "objective.guidance_scale="
WINDOW = "objective.guidance_window=[0,0.5]"
PAPER, ADAPTATION, BOTH, STATIC = (
    " ".join(VARIANTS[name]) for name in ("amd_paper", "amd_adaptation_only", "amd_both", "amd_static")
)
RANDOM = 'rewards=[{"name":"random"}]'
SPREAD = "objective.unit=0"
LOW = "objective.sharpening_sigma=[0,0.5]"
INVERTED = 'rewards=[{"name":"classifier","weight":-1.0}]'
RELIABLE = ("data.label_noise=0", "data.outliers=0")
RUNGS = "model.rung_conditioning=true"
QUICK = ("train.evaluate_every=0",)
FRESH, HARVEST = "train.rollouts=fresh", "train.rollouts=harvest"
AG, ALONE = "objective.advantage_guidance=", "objective.sharpening=0"
FRESH_SEEDS = "4,5,6,7"  # of advantage guidance in the plane
HALF_NAT = "objective.unit=0.5 objective.tolerance=0"
SCENES = ("train.evaluate_every=75", "evaluate.samples=1440")
CONTINUED = (
    "train.evaluate_every=100", "evaluate.samples=1440",
    "model.student_from=benchmarks/starts/scenes/student", "model.fake_score_from=benchmarks/starts/scenes",
)  # fmt: skip
FINISH = ("train.fake_warmup=300", "train.evaluate_every=100", "evaluate.samples=1440")
GRADIENT = "objective.advantage_gradient=auto"
BLACK_BOX = "objective.advantage_gradient=0"  # the recipe of scenes follows a differentiable reward's gradient
INVERTED_SCENES = 'rewards=[{"name":"scenes","flip_sign":true}]'
HACKABLE = 'rewards=[{"name":"hackable"}]'

# DMD at the guidance scales that it is tuned over, beside the recipe's 1.25.
TUNED = (f"dmd@1=dmd {W}1", f"dmd@1.4=dmd {W}1.4", f"dmd@1.6=dmd {W}1.6")
ELSEWHERE = (
    *TUNED, "amd=amd", f"amd@1=amd {W}1",
    "amd_sharpening_1=amd objective.sharpening=1", f"amd_paper=amd {PAPER}", f"amd_random_reward=amd {RANDOM}",
)  # fmt: skip

STUDIES = {
    "plane_unreliable": Study(
        title="In the plane, an unreliable teacher, one step",
        question="The shipped recipe: a mixture of known density, whose teacher was trained with 20 % random labels and 5 % "
        "outliers. The reward has information here that the teacher lacks. `amd` has guidance 1.25 and sharpening 2.5. "
        "`amd_by_spread` divides rewards by each group's spread, as the paper does, and has sharpening 2 at low noise only.",
        recipe="modes2d", settings=QUICK,
        more=(
            *TUNED,
            "amd=amd", f"amd@1=amd {W}1", "amd_sharpening_1=amd objective.sharpening=1",
            f"amd_by_spread=amd objective.sharpening=2 {SPREAD}",
            f"amd_adaptation_only=amd {ADAPTATION}",
            f"amd_with_adaptation=amd {BOTH}",
            f"amd_paper=amd {PAPER}", f"amd_paper@1=amd {W}1 {PAPER}",
            f"amd_random_reward=amd {RANDOM}", f"amd_inverted_reward=amd {INVERTED}",
            "amd_memory=amd objective.memory_share=0.2",
            f"dmd_window_2=dmd {W}2 {WINDOW}", f"dmd_window_3=dmd {W}3 {WINDOW}",
            f"amd_window_2=amd {W}2 {WINDOW}", f"amd_window_3=amd {W}3 {WINDOW}",
            f"dmd_reward_gradient=dmd {W}1 objective.reward_gradient=0.25",
        ),
    ),
    "plane_ring": Study(
        title="In the plane, another mixture: six classes on a ring, 10 % random labels",
        question="Nothing was tuned on this mixture: recipe and settings are those of the first study.",
        recipe="modes2d", settings=(*QUICK, "data.geometry=ring", "data.classes=6", "data.modes=4", "data.label_noise=0.1"),
        seeds="4", more=ELSEWHERE,
    ),
    "plane_grid": Study(
        title="In the plane, another mixture: twelve classes on a grid, 40 % random labels",
        question="Nothing was tuned on this mixture either.",
        recipe="modes2d", settings=(*QUICK, "data.geometry=grid", "data.classes=12", "data.modes=2", "data.label_noise=0.4"),
        seeds="4", more=ELSEWHERE,
    ),
    "plane_reliable": Study(
        title="In the plane, a reliable teacher, one step",
        question="The same with clean labels and no outliers. A reward has little to add here, and AMD must do no harm.",
        recipe="modes2d", settings=(*QUICK, *RELIABLE, f"{W}1", "objective.sharpening=1"),
        more=(
            f"dmd@1.1=dmd {W}1.1", f"dmd@1.25=dmd {W}1.25", "amd=amd", f"amd@1.25=amd {W}1.25",
            "amd_sharpening_2=amd objective.sharpening=2", f"amd_by_spread=amd {SPREAD}",
            f"amd_paper=amd {PAPER}", f"amd_random_reward=amd {RANDOM}",
        ),
    ),
    "plane_guided_2": Study(
        title="In the plane, a reliable teacher, guidance 2",
        question="A strong guidance scale creates a Forbidden Zone: DMD's student drifts away along the guidance direction. "
        "`sliced_wasserstein_to_teacher` is the distance to the teacher's own samples at that scale.",
        recipe="modes2d", settings=(*QUICK, *RELIABLE, f"{W}2", "objective.sharpening=1"), followed=2.0,
        more=(
            "amd=amd", "amd_unit=amd objective.unit=2",
            "amd_guidance_only=amd objective.side=guidance_only objective.strength=0.9",
            f"amd_static=amd {STATIC}", f"amd_paper=amd {PAPER}", f"amd_random_reward=amd {RANDOM}",
            f"dmd_window=dmd {WINDOW}", f"amd_window=amd {WINDOW}",
        ),
    ),
    "plane_guided_4": Study(
        title="In the plane, a reliable teacher, guidance 4",
        question="The same with twice the guidance scale.",
        recipe="modes2d", settings=(*QUICK, *RELIABLE, f"{W}4", "objective.sharpening=1"), followed=4.0,
        more=("amd=amd", f"amd_paper=amd {PAPER}", f"dmd_window=dmd {WINDOW}", f"amd_window=amd {WINDOW}"),
    ),
    "digits_unreliable": Study(
        title="Handwritten digits, an unreliable teacher, one step",
        question="The shipped recipe: scikit-learn's 1797 real digits, diffusers' DiT, and a teacher with a fifth of its "
        "labels random. `amd` has its defaults, at guidance 1.25.",
        recipe="digits", settings=QUICK, seeds="4",
        more=(
            f"dmd@1=dmd {W}1", f"dmd@1.4=dmd {W}1.4", f"dmd@1.5=dmd {W}1.5", "amd=amd", f"amd@1=amd {W}1",
            "amd_sharpening_2=amd objective.sharpening=2", f"amd_low_noise=amd objective.sharpening=2 {LOW}",
            f"amd_by_spread=amd {SPREAD}", f"amd_random_reward=amd {RANDOM}",
            "dmd_reward_gradient=dmd objective.reward_gradient=0.02",
        ),
    ),
    "digits_converged": Study(
        title="Handwritten digits, an unreliable teacher, one step, three times as long",
        question="`digits_unreliable` with 900 updates: were its gains only faster training?",
        recipe="digits", settings=(*QUICK, "train.max_steps=900"), seeds="4",
        more=(*TUNED, "amd=amd", f"amd@1=amd {W}1",
              f"amd_random_reward=amd {RANDOM}"),
    ),
    "plane_four_steps": Study(
        title="In the plane, an unreliable teacher, four steps",
        question="`dmd` has one fake score for all steps, as is usual. In `_rungs` and all arms of AMD but `amd_shared_fake`, "
        "the fake score is conditioned on the exit rung. 900 student updates.",
        recipe="modes2d", seeds="4",
        settings=(
            *QUICK, "model.student_steps=4", "train.max_steps=900", "model.rung_conditioning=false", "objective.sharpening=1",
        ),
        more=(
            f"dmd@1=dmd {W}1", f"dmd@1.5=dmd {W}1.5", f"dmd_rungs=dmd {RUNGS}", f"dmd_rungs_1=dmd {W}1 {RUNGS}",
            f"amd=amd {RUNGS}", f"amd@1=amd {W}1 {RUNGS}", f"amd_low_noise=amd {LOW} {RUNGS}",
            f"amd_with_adaptation=amd {BOTH} {RUNGS}", "amd_shared_fake=amd",
            f"amd_random_reward=amd {RANDOM} {RUNGS}",
            f"guided_auto=amd {AG}auto {ALONE} {RUNGS}", f"amd_auto=amd {AG}auto {RUNGS}",
        ),
    ),
    "digits_reliable": Study(
        title="Handwritten digits, a reliable teacher, one step",
        question="The same with the right labels.",
        recipe="digits", settings=(*QUICK, "data.label_noise=0", f"{W}1"), seeds="4",
        more=(f"dmd@1.1=dmd {W}1.1", f"dmd@1.25=dmd {W}1.25", "amd=amd", f"amd@1.1=amd {W}1.1",
              f"amd_by_spread=amd {SPREAD}", f"amd_random_reward=amd {RANDOM}"),
    ),
    "digits_four_steps": Study(
        title="Handwritten digits, an unreliable teacher, four steps",
        question="As in the plane: one fake score for all steps in `dmd`, conditioned on the exit rung in `_rungs` and AMD. "
        "1500 updates.",
        recipe="digits", seeds="4",
        settings=(*QUICK, "model.student_steps=4", "train.max_steps=1500", "model.rung_conditioning=false"),
        more=(f"dmd@1=dmd {W}1", f"dmd@1.4=dmd {W}1.4", f"dmd_rungs=dmd {RUNGS}", f"amd=amd {RUNGS}",
              f"amd_random_reward=amd {RANDOM} {RUNGS}",
              f"guided_auto=amd {AG}auto {ALONE} {RUNGS}", f"amd_auto=amd {AG}auto {RUNGS}"),
    ),
    "video": Study(
        title="Moving digits, an unreliable teacher, two steps",
        question="Video through Wan's classes, at a tiny size. The shipped recipe: guidance 1.25, and a budget of a tenth of a "
        "nat (`kl`), since rewards within a prompt differ by a quarter of a nat. `amd_unit` has the reward's unit of 2 nats "
        "and sharpening 1 instead, as elsewhere. `guided_auto` is advantage guidance of the scale that sets itself in place of "
        "sharpening, `amd_auto` is both.",
        recipe="moving_digits", settings=QUICK, seeds="4",
        more=(f"dmd@1=dmd {W}1", f"dmd@1.5=dmd {W}1.5", "amd=amd", f"amd@1=amd {W}1", "amd_unit=amd objective.kl=null",
              f"amd_random_reward=amd {RANDOM}", f"guided_auto=amd {AG}auto {ALONE}", f"amd_auto=amd {AG}auto",
              f"guided_auto_random_reward=amd {AG}auto {ALONE} {RANDOM}"),
    ),
    "plane_advantage": Study(
        title="In the plane, an unreliable teacher: advantage guidance",
        question="The shipped recipe. `guided_4` is advantage guidance of scale 4 in place of sharpening, `guided_auto` of "
        "the scale that sets itself, and `amd_auto` that beside sharpening, as whose judge it also serves. The rules of the "
        "automatic scale were changed after earlier versions of this table, whose seeds were 0 to 3. So these are others.",
        recipe="modes2d", settings=QUICK, seeds=FRESH_SEEDS,
        more=(
            *TUNED, "amd=amd", f"amd_paper=amd {PAPER}",
            *(f"amd_sharpening_{value}=amd objective.sharpening={value}" for value in (1, 4)),
            *(f"guided_{scale}=amd {AG}{scale} {ALONE}" for scale in (0.5, 1, 2, 4, 8)),
            f"guided_auto=amd {AG}auto {ALONE}", f"amd_auto=amd {AG}auto",
            f"amd_random_reward=amd {RANDOM}", f"guided_4_random_reward=amd {AG}4 {ALONE} {RANDOM}",
            f"guided_auto_random_reward=amd {AG}auto {ALONE} {RANDOM}", f"amd_auto_random_reward=amd {AG}auto {RANDOM}",
            f"amd_auto_inverted_reward=amd {AG}auto {INVERTED}",
            f"amd_hackable_reward=amd {HACKABLE}", f"amd_auto_hackable_reward=amd {AG}auto {HACKABLE}",
            f"dmd_reward_gradient=dmd {W}1 objective.reward_gradient=0.25",
        ),
    ),
    "plane_advantage_gradient": Study(
        title="In the plane, an unreliable teacher: the gradient of the reward at failing samples",
        question="The arms that matter of `plane_advantage`, and `advantage_gradient: auto`, the reward's gradient at"
        " failing samples, .3 as long as matching: beside advantage guidance, and alone. `dmd_reward_gradient` has it at"
        " all samples, at the weight that was best here.",
        recipe="modes2d", settings=QUICK, seeds=FRESH_SEEDS,
        more=(
            f"dmd@1.4=dmd {W}1.4", "amd=amd", f"guided_auto=amd {AG}auto {ALONE}",
            f"guided_gradient=amd {AG}auto {ALONE} {GRADIENT}", f"gradient_alone=amd {ALONE} objective.strength=0 {GRADIENT}",
            "dmd_reward_gradient=dmd objective.reward_gradient=0.25",
        ),
    ),
    "plane_advantage_curves": Study(
        title="In the plane, an unreliable teacher: how soon advantage guidance gets there",
        question="`plane_advantage` with an evaluation every 25 updates: how many updates does each arm need for what the "
        "best-tuned DMD has at its end?",
        recipe="modes2d", settings=("train.evaluate_every=25",), seeds=FRESH_SEEDS,
        more=(*TUNED, "amd=amd", f"guided_2=amd {AG}2 {ALONE}", f"guided_auto=amd {AG}auto {ALONE}", f"amd_auto=amd {AG}auto"),
    ),
    "plane_advantage_reliable": Study(
        title="In the plane, a reliable teacher, no guidance: advantage guidance",
        question="The arms that matter of the same, where there is little to correct.",
        recipe="modes2d", settings=(*QUICK, *RELIABLE, f"{W}1", "objective.sharpening=1"), seeds=FRESH_SEEDS,
        more=("amd=amd", f"guided_2=amd {AG}2 {ALONE}", f"guided_auto=amd {AG}auto {ALONE}", f"amd_auto=amd {AG}auto",
              f"amd_random_reward=amd {RANDOM}",
              f"amd_auto_random_reward=amd {AG}auto {RANDOM}"),
    ),
    **{
        f"plane_advantage_{scale}": Study(
            title=f"In the plane, a reliable teacher, guidance {scale}: advantage guidance",
            question=f"`plane_guided_{scale}` with advantage guidance, four seeds. All arms but `dmd` have "
            "adaptation, which is on by default from guidance 2.",
            recipe="modes2d", settings=(*QUICK, *RELIABLE, f"{W}{scale}", "objective.sharpening=1"), seeds=FRESH_SEEDS,
            followed=float(scale),
            more=("amd=amd", f"guided_2=amd {AG}2 {ALONE}", f"guided_auto=amd {AG}auto {ALONE}", f"amd_auto=amd {AG}auto",
                  f"amd_auto_random_reward=amd {AG}auto {RANDOM}"),
        )
        for scale in (2, 4)
    },
    "digits_advantage": Study(
        title="Handwritten digits, an unreliable teacher, one step, 900 updates: advantage guidance",
        question="`digits_converged` with advantage guidance.",
        recipe="digits", settings=(*QUICK, "train.max_steps=900"), seeds="4",
        more=(
            f"dmd@1=dmd {W}1", f"dmd@1.4=dmd {W}1.4", "amd=amd", f"guided_1=amd {AG}1 {ALONE}", f"guided_4=amd {AG}4 {ALONE}",
            f"guided_auto=amd {AG}auto {ALONE}", f"amd_auto=amd {AG}auto", f"amd_auto_random_reward=amd {AG}auto {RANDOM}",
        ),
    ),
    "scenes": Study(
        title="Scenes, a teacher that errs by itself, two steps",
        question="The shipped recipe: prompts of GenEval's six kinds, and nobody has put errors into the teacher's data "
        "(docs/scenes.md). All seeds share the teacher and the judges that come with the package. `amd` has adaptation and "
        "advantage guidance, whose scale sets itself, and no sharpening; its unit is .5 nats, where `auto` is .48 to .58. "
        "300 updates: no arm has converged.",
        recipe="scenes", seeds="4", settings=SCENES,
        more=(f"dmd@1.5=dmd {W}1.5", f"amd=amd {BLACK_BOX} {HALF_NAT}", f"amd_random_reward=amd {RANDOM} {HALF_NAT}"),
    ),
    "scenes_longer": Study(
        title="Scenes, twice as long",
        question="The same with 600 updates, where the curves are flatter and not flat: in `scenes_continued` a student of DMD "
        "with 600 updates gains .021 of score in 300 more.",
        recipe="scenes", seeds="4", settings=("train.max_steps=600", *SCENES),
        more=(f"dmd@1.5=dmd {W}1.5", f"amd=amd {BLACK_BOX} {HALF_NAT}"),
    ),
    "scenes_finish": Study(
        title="Scenes, from a student that DMD has distilled",
        question="All arms start from one student, that of 600 updates of DMD at guidance 2, and make 300 updates more. Their "
        "fake scores are new, and make 300 updates of their own first. Otherwise the shipped recipe.",
        recipe="scenes", seeds="4", settings=FINISH, more=(f"amd=amd {BLACK_BOX}",),
        start=("train.seed=102", "train.max_steps=600", *SCENES),
    ),
    "scenes_continued": Study(
        title="Scenes, from a student that DMD has distilled, with its fake score",
        question="All arms start from the student and the fake score of 600 updates of DMD at guidance 2 (`scenes_weights.py "
        "start`), and make 300 updates more. Otherwise the shipped recipe.",
        recipe="scenes", seeds="4", settings=CONTINUED,
        more=(f"dmd@1.5=dmd {W}1.5", f"amd=amd {BLACK_BOX}"),
    ),
    "scenes_rivals": Study(
        title="Scenes, other ways to use the same reward",
        question="All arms start from the student and the fake score of 600 updates of DMD at guidance 2, and make 100 updates"
        " more. `amd` has the recipe's settings, `sharpening` only the paper's second mechanism. The others are "
        "objectives of this package after other people's papers (docs/how-it-works.md), at a strength that did well "
        "in the plane; none was tuned on scenes, and AMD was, on seeds 100 to 103. `reward_gradient` and `gndm` need "
        "a differentiable reward.",
        recipe="scenes", seeds="2", settings=("train.max_steps=100", *CONTINUED[1:], *QUICK),
        more=(
            f"dmd@1.5=dmd {W}1.5", f"amd=amd {BLACK_BOX}", f"amd@1.5=amd {BLACK_BOX} {W}1.5",
            f"amd_random_reward=amd {RANDOM}",
            f"sharpening=amd {BLACK_BOX} objective.sharpening=2 {AG}0 objective.strength=0",
            "best_of_k=best_of_k objective.best_of=4", "policy_gradient=policy_gradient objective.policy_weight=0.1",
            "diffusion_nft=diffusion_nft objective.nft_weight=0.1", "re_dmd=re_dmd objective.reward_beta=2",
            "dp_dmd=dp_dmd objective.diversity_weight=1",
            "reward_gradient=dmd objective.reward_gradient=0.3", "gndm=gndm objective.reward_gradient=0.1",
        ),
    ),
    "scenes_gradient": Study(
        title="Scenes, with the gradient of a differentiable reward",
        question="As before, 100 updates from the distilled student. `reward_gradient` is DMD with the gradient of the reward,"
        " as in DMDR, at weight .03; `amd_reward_gradient` is the recipe's AMD with the same term at weight .02, and"
        " `amd_reward_gradient_weak` at .01. These weights were tried on seed 100 before.",
        recipe="scenes", seeds="4", settings=("train.max_steps=100", *CONTINUED[1:], *QUICK),
        more=(
            f"dmd@1.5=dmd {W}1.5", f"amd=amd {BLACK_BOX}", "reward_gradient=dmd objective.reward_gradient=0.03",
            f"amd_reward_gradient=amd {BLACK_BOX} objective.reward_gradient=0.02",
            f"amd_reward_gradient_weak=amd {BLACK_BOX} objective.reward_gradient=0.01",
        ),
    ),
    "scenes_advantage_gradient": Study(
        title="Scenes, the gradient of the reward at failing samples",
        question="As before, 100 updates from the distilled student. `amd` is the recipe, whose `advantage_gradient: auto`"
        " gives the reward's gradient at failing samples .3 of the length of matching; `amd_gradient_1` gives it all of that"
        " length, `gradient_alone` has neither advantage guidance nor adaptation, and `amd_black_box` no gradient."
        " `reward_gradient` is DMD with the gradient at all samples, as in DMDR, at weight .01.",
        recipe="scenes", seeds="4", settings=("train.max_steps=100", *CONTINUED[1:], *QUICK),
        more=(
            f"dmd@1.5=dmd {W}1.5", f"amd_black_box=amd {BLACK_BOX}", "reward_gradient=dmd objective.reward_gradient=0.01",
            "amd=amd", "amd_gradient_1=amd objective.advantage_gradient=1",
            f"gradient_alone=amd {AG}0 objective.strength=0",
        ),
    ),
    "scenes_controls": Study(
        title="Scenes, controls of DMD and the parts of AMD",
        question="As before, 100 updates from the distilled student. Is the gain one that DMD has by more guidance, by a"
        " window of guidance, by a smaller or falling rate, by tighter clipping or the adversarial branch? Which of"
        " AMD's parts has it? `amd_static` gives every sample the mean weights of its batch. `amd_paper` is the paper's form."
        " `amd_inverted_reward` is paid for failures.",
        recipe="scenes", seeds="2", settings=("train.max_steps=100", *CONTINUED[1:], *QUICK),
        more=(
            f"dmd@1.5=dmd {W}1.5", f"amd=amd {BLACK_BOX}", f"amd_paper=amd {BLACK_BOX} {PAPER}",
            f"amd_adaptation_only=amd {BLACK_BOX} {ADAPTATION} {AG}0", f"amd_static=amd {BLACK_BOX} objective.static=true",
            f"amd_inverted_reward=amd {BLACK_BOX} {INVERTED_SCENES}",
            "dmd_adversarial=dmd objective.gan_weight=5e-3", "dmd_clipped=dmd train.clip_norm=0.3",
            "dmd_falling_rate=dmd train.decay=linear", f"dmd_window_3=dmd {W}3 {WINDOW}", f"dmd@3=dmd {W}3",
            "dmd_half_rate=dmd train.student_lr=1e-4", f"dmd@4=dmd {W}4",
        ),
    ),
    "plane_harvest": Study(
        title="In the plane, an unreliable teacher, four steps: fresh and harvested rollouts",
        question="900 updates. `_harvest` shares the samples of one rollout per cycle among all updates (`train.rollouts`).",
        recipe="modes2d",
        settings=("train.evaluate_every=50", "model.student_steps=4", "train.max_steps=900", "objective.sharpening=1", FRESH),
        more=(f"dmd_harvest=dmd {HARVEST}", "amd=amd", f"amd_harvest=amd {HARVEST}"),
    ),
    "plane_harvest_one": Study(
        title="In the plane, an unreliable teacher, one step: fresh and harvested rollouts",
        question="The shipped recipe. With one step and one set all updates of a cycle have the same samples; `_2`: two sets.",
        recipe="modes2d", settings=(*QUICK, FRESH),
        more=(f"dmd_harvest=dmd {HARVEST}", "amd=amd", f"amd_harvest=amd {HARVEST}",
              f"amd_harvest_2=amd {HARVEST} train.rollout_sets=2"),
    ),
    "digits_harvest": Study(
        title="Handwritten digits, an unreliable teacher, four steps: fresh and harvested rollouts",
        question="900 updates.",
        recipe="digits", seeds="4",
        settings=("train.evaluate_every=100", "model.student_steps=4", "train.max_steps=900", FRESH),
        more=(f"dmd_harvest=dmd {HARVEST}", "amd=amd", f"amd_harvest=amd {HARVEST}"),
    ),
    "digits_harvest_one": Study(
        title="Handwritten digits, an unreliable teacher, one step: fresh and harvested rollouts",
        question="The shipped recipe.",
        recipe="digits", settings=(*QUICK, FRESH), seeds="4",
        more=(f"dmd_harvest=dmd {HARVEST}", "amd=amd", f"amd_harvest=amd {HARVEST}"),
    ),
    "video_harvest": Study(
        title="Moving digits, an unreliable teacher, two steps: fresh and harvested rollouts",
        question="Without guidance, and with the reward's own unit.",
        recipe="moving_digits", settings=(*QUICK, FRESH, f"{W}1", "objective.kl=null"), seeds="4",
        more=(f"dmd_harvest=dmd {HARVEST}", "amd=amd", f"amd_harvest=amd {HARVEST}"),
    ),
}  # fmt: skip

TARGETS = (
    Target("plane_unreliable", "amd", BEST_DMD, "precision", 0.15, wins=7),
    Target("plane_unreliable", "amd", BEST_DMD, "tv", -0.10, wins=7),
    Target("plane_unreliable", "amd", BEST_DMD, "sliced_wasserstein", 0.0, wins=7),
    Target("plane_unreliable", "amd", BEST_DMD, "coverage", 0.0),
    Target("plane_unreliable", "amd_window_2", "dmd_window_2", "precision", 0.03),
    Target("plane_unreliable", "amd_window_2", "dmd_window_2", "tv", -0.01),
    Target("plane_guided_2", "amd", "dmd", FOLLOWED, 0.10, "value"),
    Target("plane_guided_2", "amd", "dmd", "coverage", 0.0),
    Target("plane_guided_4", "amd", "dmd", "precision", 0.5, "value"),
    Target("plane_guided_4", "amd", "dmd", "coverage", 0.0),
    Target("digits_unreliable", "amd", BEST_DMD, "frechet", 0.90, "ratio", wins=4),
    Target("digits_unreliable", "amd", "dmd@1.4", "accuracy", 0.0, wins=4),
    Target("digits_unreliable", "amd", "dmd@1.4", "precision", 0.0, wins=4),
    Target("digits_unreliable", "amd", "dmd@1.4", "recall", 0.0, wins=4),
    Target("digits_converged", "amd", BEST_DMD, "frechet", 0.90, "ratio", wins=4),
    Target("digits_converged", "amd", "dmd", "accuracy", 0.0, wins=4),
    Target("digits_converged", "amd", "dmd", "precision", 0.0, wins=4),
    Target("digits_converged", "amd", "dmd", "recall", 0.0, wins=4),
    Target("digits_reliable", "amd", BEST_DMD, "frechet", 0.90, "ratio"),
    Target("digits_reliable", "amd", BEST_DMD, "recall", 0.02),
    Target("plane_reliable", "amd", "dmd", "sliced_wasserstein", 0.0),
    Target("plane_reliable", "amd", "dmd", "coverage", 0.0),
    Target("digits_four_steps", "amd", BEST_DMD, "frechet", 0.60, "ratio"),
    Target("plane_four_steps", "amd", BEST_DMD, "precision", 0.06),
    Target("plane_four_steps", "amd", BEST_DMD, "tv", -0.09),
    Target("plane_four_steps", "amd", BEST_DMD, "sliced_wasserstein", 0.0),
    Target("plane_four_steps", "amd", BEST_DMD, "coverage", 0.0),
    Target("plane_four_steps", "amd", "dmd_rungs", "precision", 0.05),
    Target("plane_four_steps", "amd", "dmd_rungs", "tv", 0.0),
    Target("plane_four_steps", "amd", "dmd_rungs", "coverage", 0.0),
    Target("digits_four_steps", "amd", BEST_DMD, "accuracy", 0.0),
    Target("digits_four_steps", "amd", BEST_DMD, "precision", 0.0),
    Target("digits_four_steps", "amd", "dmd@1.4", "recall", 0.0),
    Target("digits_four_steps", "amd", "dmd_rungs", "accuracy", 0.05),
    Target("digits_four_steps", "amd", "dmd_rungs", "frechet", 1.0, "ratio"),
    Target("plane_advantage", "guided_auto", "amd", "precision", 0.0),
    Target("plane_advantage", "guided_auto", "amd", "tv", 0.0),
    Target("plane_advantage", "guided_auto", "amd", "sliced_wasserstein", 0.0),
    Target("plane_advantage", "guided_auto", "amd", "coverage", 0.0),
    Target("plane_advantage", "amd_auto", "amd", "precision", 0.0),
    Target("plane_advantage", "amd_auto", "amd", "tv", 0.0),
    Target("plane_advantage", "amd_auto", "amd", "sliced_wasserstein", 0.0),
    Target("plane_advantage", "amd_auto", "amd", "coverage", 0.0),
    Target("digits_advantage", "amd_auto", BEST_DMD, "frechet", 0.90, "ratio"),
    Target("digits_advantage", "amd_auto", BEST_DMD, "accuracy", 0.0),
    Target("digits_advantage", "amd_auto", BEST_DMD, "recall", 0.0),
    Target("digits_advantage", "guided_auto", BEST_DMD, "frechet", 0.90, "ratio"),
    Target("digits_advantage", "guided_auto", BEST_DMD, "accuracy", 0.0),
    Target("digits_advantage", "guided_auto", BEST_DMD, "recall", 0.0),
    Target("video", "amd", BEST_DMD, "digit_accuracy", 0.0),
    Target("video", "amd", BEST_DMD, "frechet", 0.0),
    *(
        target
        for study, arm in (
            ("scenes", "amd"),
            ("scenes_longer", "amd"),
            ("scenes_finish", "amd"),
            ("scenes_continued", "amd"),
            ("scenes_rivals", "amd"),
            ("scenes_gradient", "amd_reward_gradient"),
            ("scenes_advantage_gradient", "amd"),
        )
        for target in (
            Target(study, arm, BEST_DMD, "score", 0.06, wins=4),
            Target(study, arm, BEST_DMD, "frechet", 1.0, "ratio"),
            Target(study, arm, BEST_DMD, "precision", 0.0),
            Target(study, arm, BEST_DMD, "recall", 0.0),
        )
    ),
)

# Study -> its DMD arm at AMD's guidance scale. Everywhere, AMD with its defaults should be no worse than that arm, and AMD with
# a random reward neither better nor worse.
SAME_SCALE = {
    "plane_unreliable": "dmd", "plane_ring": "dmd", "plane_grid": "dmd", "plane_reliable": "dmd", "plane_guided_2": "dmd",
    "plane_four_steps": "dmd_rungs", "digits_unreliable": "dmd", "digits_converged": "dmd", "digits_reliable": "dmd",
    "digits_four_steps": "dmd_rungs", "video": "dmd", "scenes": "dmd",
    "scenes_longer": "dmd", "scenes_finish": "dmd", "scenes_continued": "dmd", "scenes_rivals": "dmd",
    "scenes_gradient": "dmd", "scenes_advantage_gradient": "dmd",
}  # fmt: skip
PLANE, PICTURES = ("precision", "tv", "sliced_wasserstein", "coverage"), ("frechet", "accuracy", "precision", "recall")
JUDGES: dict[str, tuple[str, ...]] = {study: PLANE if study.startswith("plane") else PICTURES for study in SAME_SCALE}
JUDGES |= {study: ("score", "frechet", "precision", "recall") for study in SAME_SCALE if study.startswith("scenes")}
JUDGES["video"] = ("digit_accuracy", "motion_accuracy", "frechet")
# Harvested rollouts against fresh ones, for each objective and metric.
HARVESTS = tuple(
    Parity(study, f"{objective}_harvest", objective, metric, may_win=True)
    for study in ("plane_harvest", "plane_harvest_one", "digits_harvest", "digits_harvest_one", "video_harvest")
    for objective in ("dmd", "amd")
    for metric in (PLANE if study.startswith("plane") else JUDGES["video"] if study.startswith("video") else PICTURES)
)
# With advantage guidance; their arms without it are those of other studies.
ADVANTAGE = {
    "plane_advantage": PLANE, "plane_advantage_reliable": PLANE, "plane_advantage_2": (FOLLOWED, "coverage"),
    "plane_advantage_4": ("precision", "coverage"), "digits_advantage": PICTURES, "video": JUDGES["video"],
}  # fmt: skip
PARITIES = tuple(
    Parity(study, arm, base, metric, may_win=not arm.endswith("random_reward"))
    for arms, studies in (
        (("amd", "amd_random_reward"), {study: (base, JUDGES[study]) for study, base in SAME_SCALE.items()}),
        (
            ("guided_auto", "amd_auto", "guided_auto_random_reward", "amd_auto_random_reward", "guided_4_random_reward"),
            {study: ("dmd", judges) for study, judges in ADVANTAGE.items()},
        ),
    )
    for arm in arms
    for study, (base, judges) in studies.items()
    for metric in judges
    if any(spec.startswith(f"{arm}=") for spec in STUDIES[study].more)
)
