"""Properties of the paper's figures: their settings, and what is computed of trained runs against
brute force and worked examples."""

import csv
import itertools

import grok
import numpy as np
import power2022
import pytest
import relations
import sharpness
import torch

PERMS = list(itertools.permutations(range(5)))
TINY = dict(op="x_plus_y", p=11, layers=1, width=16, heads=2, batch_size=16, threads=1)
SWEEP = "--op x_plus_y --p 11 --layers 1 --width 16 --heads 2 --batch-size 16 --steps 30"


def runs_of(figure, scale="paper", seeds=None):
    lines = power2022.commands(figure, scale, seeds)
    return [config for words in lines for config in power2022.configs(words)]


def told(configs, *names):
    return {tuple(getattr(c, name) for name in names) for c in configs}


# --- The figures' settings ------------------------------------------------------------------------


@pytest.mark.parametrize("figure", power2022.PAPER)
def test_the_papers_model_and_optimiser(figure):
    names = "layers", "width", "heads", "p", "beta1", "beta2", "eps", "warmup", "grad_clip"
    assert told(runs_of(figure), *names) == {(2, 128, 4, 97, 0.9, 0.98, 1e-8, 10, 0.0)}


def test_figure_1_left_is_adam_without_decay_for_a_million_updates():
    names = "op", "frac", "weight_decay", "lr", "batch_size", "steps", "until"
    assert told(runs_of("1-left"), *names) == {("x_div_y", 0.5, 0, 1e-3, 512, 10**6, 0)}


def test_figure_1_centre_has_seven_seeds_of_s5():
    runs = runs_of("1-centre")
    names = "op", "weight_decay", "steps", "lr"
    assert told(runs, *names) == {("s5_xy", 1, 5 * 10**5, 1e-3)}
    assert len(told(runs, "seed")) == 7


def test_figure_2_left_has_the_papers_interventions():
    names = "lr", "batch_size", "weight_decay", "decay_to", "dropout"
    noises = "weight_noise", "update_noise"
    assert told(runs_of("2-left"), *names, *noises) == {
        (1e-3, 512, 0, "origin", 0, 0, 0),
        (1e-3, 0, 0, "origin", 0, 0, 0),
        (1e-3, 0, 0, "origin", 0, 0, 1),
        (1e-3, 512, 0, "origin", 0, 0.01, 0),
        (1e-3, 512, 0, "origin", 0.1, 0, 0),
        (1e-3, 512, 1, "origin", 0, 0, 0),
        (1e-3, 512, 1, "init", 0, 0, 0),
        (3e-4, 512, 0, "origin", 0, 0, 0),
        (3e-3, 512, 0, "origin", 0, 0, 0),
    }


def test_figure_2_left_spends_its_updates_on_s5_with_three_seeds():
    runs = runs_of("2-left")
    assert told(runs, "op", "steps", "until") == {("s5_xy", 10**5, 0)}
    assert told(runs, "seed") == {(0,), (1,), (2,)}


def test_figure_2_right_has_twelve_operations_up_to_95_per_cent():
    runs = runs_of("2-right")
    assert len(told(runs, "op")) == 12
    assert told(runs, "steps", "weight_decay") == {(10**5, 1)}
    assert max(c.frac for c in runs) == 0.95


@pytest.mark.parametrize("figure", ["3", "6"])
def test_figures_3_and_6_spend_all_their_updates(figure):
    assert told(runs_of(figure), "until") == {(0,)}


def test_figure_3_is_of_addition_and_of_s5():
    assert told(runs_of("3"), "op") == {("x_plus_y",), ("s5_xy",)}


def test_figure_6_has_none_1000_and_3000_outliers():
    assert {0, 1000, 3000} <= {c.outliers for c in runs_of("6")}


@pytest.mark.parametrize("scale", power2022.SCALES)
@pytest.mark.parametrize("figure", power2022.FOLDERS)
def test_no_run_is_there_twice(figure, scale):
    runs = runs_of(figure, scale, seeds=2)
    assert len({tuple(c.fixed().values()) for c in runs}) == len(runs)


@pytest.mark.parametrize("scale", power2022.SCALES)
@pytest.mark.parametrize("figure", power2022.FOLDERS)
def test_a_figure_has_the_seeds_asked_for(figure, scale):
    assert told(runs_of(figure, scale, seeds=2), "seed") == {(0,), (1,)}


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_figure(monkeypatch):
    monkeypatch.setitem(power2022.CPU, "2-right", [SWEEP])
    return ["2-right", "--jobs", "1", "--quiet", "--threads", "1", "--out"]


def test_a_stopped_figure_goes_on_to_the_same_metrics(tiny_figure, tmp_path, monkeypatch):
    update, left = grok.Run.update, [50]

    def interrupted(run, rows):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        update(run, rows)

    monkeypatch.setattr(power2022, "make", lambda figure, folder: 0)
    with monkeypatch.context() as patched:
        patched.setattr(grok.Run, "update", interrupted)
        assert power2022.main([*tiny_figure, str(tmp_path)]) == 130
    assert power2022.main([*tiny_figure, str(tmp_path)]) == 0
    records = grok.read(tmp_path / "cpu" / "2-right")
    assert [record.config.seed for record in records] == [0, 1, 2]
    for record in records:
        whole = grok.train(grok.Config(**TINY, steps=30, seed=record.config.seed), quiet=True)
        losses = [row["val_loss"] for row in whole.log]
        assert [row["val_loss"] for row in record.log] == losses


def test_a_finished_figure_is_drawn_again_and_not_trained(tiny_figure, tmp_path, monkeypatch):
    assert power2022.main([*tiny_figure, str(tmp_path)]) == 0
    folder = tmp_path / "cpu" / "2-right"
    table, picture = folder / "runs.csv", folder / "curves-x_plus_y-mod-11.png"
    rows = table.read_text()
    table.unlink()
    picture.unlink()
    monkeypatch.setattr(grok.Run, "update", None)
    assert power2022.main([*tiny_figure, str(tmp_path)]) == 0
    assert table.read_text() == rows
    assert picture.exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("words", [["--lr", "x"], ["--seeds", "0"]])
def test_a_mistake_in_a_flag_ends_the_command(tiny_figure, words, dry, tmp_path, capsys):
    assert power2022.main([*tiny_figure, str(tmp_path), *words, *dry]) == 2
    assert "--lr x" in capsys.readouterr().err or words[0] == "--seeds"


def test_a_picture_that_cannot_be_drawn_ends_the_command(tiny_figure, tmp_path, monkeypatch):
    monkeypatch.setattr(power2022.figures, "main", lambda argv: 2)
    assert power2022.main([*tiny_figure, str(tmp_path)]) == 2


def test_a_dry_run_says_how_many_runs(tiny_figure, tmp_path, capsys):
    assert power2022.main([*tiny_figure, str(tmp_path), "--dry-run"]) == 0
    assert "2-right: 3 runs, " in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tiny_figure, tmp_path):
    assert power2022.main([*tiny_figure, str(tmp_path / "x"), "--dry-run"]) == 0
    assert not (tmp_path / "x").exists()


# --- Figure 3 -------------------------------------------------------------------------------------


def distance(rows, a, b):
    return ((rows[a] - rows[b]) ** 2).sum()


def mean_distance(rows, pairs):
    return np.mean([distance(rows, a, b) for a, b in pairs])


def circle(n):
    """Rows (n, 2) that turn five times."""
    angle = 2 * np.pi * 5 * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def run_with_a_circle(p):
    """A run in whose output layer the elements are a circle."""
    run = grok.Run(grok.Config(**TINY | dict(p=p)))
    with torch.no_grad():
        run.model.head.weight[:p] = 0
        run.model.head.weight[:p, :2] = torch.from_numpy(circle(p))
    return run


def strands_apart(rows, k):
    """The mean squared distance of z and z + k by that of any two."""
    n = len(rows)
    any_two = mean_distance(rows, itertools.combinations(range(n), 2))
    return mean_distance(rows, [(z, (z + k) % n) for z in range(n)]) / any_two


def test_there_are_strands_of_each_step_up_to_half_the_modulus():
    names = {relation.name for relation in relations.relations(circle(97), "x_plus_y")}
    assert names == {f"z+{k}" for k in range(1, 49)}


def test_the_nearest_strands_of_a_circle_come_first():
    """By hand: 5 · 39 = 1 mod 97."""
    first, *others = relations.relations(circle(97), "x_plus_y")
    assert first.name == "z+39"
    assert first.apart < min(relation.apart for relation in others)


@pytest.mark.parametrize("k", [8, 39])
def test_strands_are_apart_by_the_distances_of_all_pairs(k):
    found = {r.name: r.apart for r in relations.relations(circle(97), "x_plus_y")}
    assert found[f"z+{k}"] == pytest.approx(strands_apart(circle(97), k))


def then(x, y):
    """The permutation that is x first, then y."""
    return tuple(y[i] for i in x)


def papers_subgroup():
    """⟨(0 3)(1 4), (1 2)(3 4)⟩, as permutations."""
    group = {(0, 1, 2, 3, 4)}
    generators = [(3, 4, 2, 0, 1), (0, 2, 1, 4, 3)]
    while True:
        larger = group | {then(x, g) for x in group for g in generators}
        if larger == group:
            return group
        group = larger


def cosets_of_a_conjugate(side):
    """The cosets, sets of elements, of a conjugate of the paper's subgroup."""
    g = (1, 0, 4, 2, 3)
    inverse = tuple(g.index(i) for i in range(5))
    group = [then(then(inverse, h), g) for h in papers_subgroup()]
    product = then if side == "left" else lambda x, h: then(h, x)
    return {frozenset(PERMS.index(product(x, h)) for h in group) for x in PERMS}


@pytest.fixture(params=["left", "right"])
def clustered(request):
    """Output rows that lie together by cosets, and the cosets."""
    cosets, random = cosets_of_a_conjugate(request.param), np.random.default_rng(0)
    rows = np.empty((120, 16))
    for coset in cosets:
        noise = 0.01 * random.normal(size=(10, 16))
        rows[list(coset)] = random.normal(size=16) + noise
    return rows, cosets


def test_the_cosets_that_are_clusters_are_found(clustered):
    rows, cosets = clustered
    clearest = relations.relations(rows, "s5_xyx")[0]
    assert clearest.size == 10
    assert {frozenset(family) for family in clearest.families.tolist()} == cosets


def test_apart_is_by_the_distances_of_all_pairs(clustered):
    rows, cosets = clustered
    within = [pair for coset in cosets for pair in itertools.combinations(coset, 2)]
    any_two = mean_distance(rows, itertools.combinations(range(120), 2))
    clearest = relations.relations(rows, "s5_xyx")[0]
    assert clearest.apart == pytest.approx(mean_distance(rows, within) / any_two)


def test_f_is_that_of_a_one_way_analysis(clustered):
    rows, cosets = clustered
    means = [rows[list(coset)].mean(axis=0) for coset in cosets]
    between = 10 * sum(((mean - rows.mean(axis=0)) ** 2).sum() for mean in means)
    total = ((rows - rows.mean(axis=0)) ** 2).sum()
    ratio = (between / 11) / ((total - between) / 108)
    clearest = relations.relations(rows, "s5_xyx")[0]
    assert pytest.approx(ratio) == clearest.F


def test_no_cosets_stand_out_of_random_rows():
    rows = np.random.default_rng(0).normal(size=(120, 128))
    found = relations.relations(rows, "s5_xy")
    assert len(found) == 17
    assert all(0.95 < relation.apart < 1.01 for relation in found)


def test_the_subgroups_of_s5_are_as_the_literature_has_them():
    """(order, number of conjugates) of the classes but for 1 and S5."""
    two_to_five = [(2, 10), (2, 15), (3, 10), (4, 5), (4, 15), (4, 15), (5, 6)]
    six_to_ten = [(6, 10), (6, 10), (6, 10), (8, 15), (10, 6)]
    larger = [(12, 5), (12, 10), (20, 6), (24, 5), (60, 1)]
    shapes = [conjugates.shape for _, conjugates in relations.subgroups()]
    assert sorted((order, n) for n, order in shapes) == [*two_to_five, *six_to_ten, *larger]


def test_a_subgroup_is_closed():
    for _, conjugates in relations.subgroups():
        group = {PERMS[element] for element in conjugates[-1]}
        assert {then(x, y) for x in group for y in group} == group


@pytest.mark.parametrize(
    "perm, text", [((3, 4, 2, 0, 1), "(0 3)(1 4)"), ((0, 2, 3, 1, 4), "(1 2 3)")]
)
def test_permutations_are_written_as_in_the_paper(perm, text):
    assert relations.cycles(PERMS.index(perm)) == text


def test_the_maps_join_the_paper_s_strands_and_the_clearest():
    """By hand: 5 · 9 = -1 mod 23."""
    maps = relations.output_map(run_with_a_circle(23)).axes
    for axes, step in zip(maps, (8, 9), strict=True):
        points, *joined = [line.get_xydata() for line in axes.lines]
        expected = [points[[z, (z + step) % 23]] for z in range(23)]
        assert np.allclose(joined, expected)
        assert axes.get_title().startswith(f"z+{step},")


@pytest.fixture
def written():
    """The rows of a table of relations, of a circle of 17 elements."""
    return list(relations.relation_rows(run_with_a_circle(17)))


def test_relations_are_written_for_rows_and_shuffled_rows(written):
    """Nothing lies together in shuffled ones."""
    assert [row["shuffled"] for row in written] == [0] * 8 + [1] * 8
    assert min(row["apart"] for row in written[8:]) > 0.5


def test_relations_are_written_by_rank(written):
    assert [row["rank"] for row in written] == [*range(1, 9), *range(1, 9)]


def test_the_clearest_relation_has_the_first_rank(written):
    for half in written[:8], written[8:]:
        ratios = [row["F"] for row in half]
        assert ratios == sorted(ratios, reverse=True)


def test_the_first_relation_written_is_that_of_neighbours(written):
    """By hand: 5 · 7 = 1 mod 17."""
    assert written[0]["relation"] == "z+7"
    assert written[0]["apart"] == pytest.approx(strands_apart(circle(17), 7))


def test_output_rows_are_those_of_elements():
    run = grok.Run(grok.Config(**TINY))
    rows = relations.output_rows(run)
    h = torch.randn(16)
    assert rows.shape == (11, 16)
    assert np.allclose(rows @ h.numpy(), run.model.head(h)[:11].detach(), atol=1e-6)


# --- Figure 7 -------------------------------------------------------------------------------------


@pytest.fixture
def quadratic():
    """A point w of eight weights, a curvature or slope for each, and a box around w."""
    random = np.random.default_rng(0)
    w, c = (torch.from_numpy(random.normal(size=8) * 3) for _ in range(2))
    return w, c, 0.05 * (w.abs() + 1)


def test_sharpness_of_a_bowl_is_that_of_a_corner_of_the_box(quadratic):
    w, c, box = quadratic
    highest = (c * box).square().sum().item()
    found = sharpness.sharpness(lambda v: 0.7 + (c * (v - w)).square().sum(), w, box)
    assert found == pytest.approx(100 * highest / 1.7, rel=1e-9)


def test_sharpness_where_the_maximum_is_beyond_the_box(quadratic):
    w, c, box = quadratic

    def loss(v):
        return 2 + (c * (v - w)).sum() - 0.1 * (v - w).square().sum()

    signs = itertools.product([-1.0, 1.0], repeat=8)
    corners = torch.tensor(list(signs), dtype=torch.float64)
    highest = max(loss(w + corner * box).item() for corner in corners)
    found = sharpness.sharpness(loss, w, box)
    assert found == pytest.approx(100 * (highest - 2) / 3, rel=1e-9)


def test_sharpness_where_the_maximum_is_inside(quadratic):
    w, _, box = quadratic

    def loss(v):
        return 2 - (v - w - box / 3).square().sum()  # a third out

    at = loss(w).item()
    expected = 100 * (2 - at) / (1 + at)
    assert sharpness.sharpness(loss, w, box) == pytest.approx(expected, rel=0.02)


def test_a_flat_loss_has_no_sharpness(quadratic):
    w, _, box = quadratic
    assert sharpness.sharpness(lambda v: (v * 0).sum(), w, box) == 0


def test_the_loss_at_the_weights_is_that_of_the_log():
    run = grok.train(grok.Config(**TINY, steps=20, outliers=5), quiet=True)
    loss, w = sharpness.training_loss(run)
    assert loss(w).item() == pytest.approx(run.log[-1]["train_loss"], abs=1e-5)


def test_the_loss_elsewhere_is_that_of_a_model_with_those_weights():
    run = grok.train(grok.Config(**TINY, steps=20), quiet=True)
    loss, w = sharpness.training_loss(run)
    away = w + 0.1 * torch.randn_like(w)
    moved = loss(away).item()
    torch.nn.utils.vector_to_parameters(away, run.model.parameters())
    assert moved == pytest.approx(run.measure(run.model)["train_loss"].item(), abs=1e-5)


def test_the_boxes_are_keskars_and_a_hundredth_of_each_weight():
    w = torch.tensor([-2.0, 0.0])
    boxes = {name: box(w).tolist() for name, box in sharpness.BOXES.items()}
    assert boxes["phi"] == pytest.approx([0.003, 0.001])
    assert boxes["phi_relative"] == pytest.approx([0.02, 0.0])


@pytest.fixture
def maps():
    """The two maps of four rows."""
    task = dict(op="s5_xy", frac=0.5)
    points = [(1, 1), (2, 9), (3, 4), (4, 16)]
    rows = [task | dict(phi=x, phi_relative=5 - x, val_acc=y) for x, y in points]
    return sharpness.sharpness_map(rows).axes


def test_the_maps_have_the_rows_points(maps):
    one, other = (axes.lines[0].get_xydata().tolist() for axes in maps)
    assert one == [[1, 1], [2, 9], [3, 4], [4, 16]]
    assert other == [[4, 1], [3, 9], [2, 4], [1, 16]]


def test_the_maps_have_the_rank_correlation_of_the_points(maps):
    """By hand, of the ranks 1, 3, 2, 4: 1 - 6 · 2 / (4³ - 4) = 0.8."""
    one, other = (axes.get_legend().texts[0].get_text() for axes in maps)
    assert "ρ = 0.800" in one
    assert "ρ = -0.800" in other


@pytest.fixture(scope="module", params=["3", "7"])
def figure_and_folder(request, tmp_path_factory):
    """Figure 3 or 7, made of two runs, and its folder."""
    folder = tmp_path_factory.mktemp("figure")
    for seed in 0, 1:
        config = grok.Config(**TINY | dict(p=17), steps=20, seed=seed)
        grok.train(config, folder / str(seed), quiet=True)
    power2022.make(request.param, folder)
    return request.param, folder


def test_figures_3_and_7_write_the_rows_of_each_run(figure_and_folder):
    figure, folder = figure_and_folder
    file, rows_a_run = {"3": ("relations", 16), "7": ("sharpness", 1)}[figure]
    with open(folder / f"{file}.csv") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["seed"] for row in rows] == ["0"] * rows_a_run + ["1"] * rows_a_run
    assert {row["grok"] for row in rows} == {grok.__version__}


def test_figure_3_is_a_picture_of_each_run_and_figure_7_one_of_all(figure_and_folder):
    figure, folder = figure_and_folder
    pictures = {"3": ["map-x_plus_y-0.png", "map-x_plus_y-1.png"], "7": ["sharpness.png"]}
    assert sorted(file.name for file in folder.glob("*.png")) == pictures[figure]
