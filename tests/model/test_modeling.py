"""DecisionMambaModel: DecisionTransformer's interface, padding, recurrence, loading, precision."""

import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, DecisionTransformerModel, Trainer, TrainingArguments
from transformers.models.decision_transformer.modeling_decision_transformer import DecisionTransformerOutput

from hf_decision_mamba import DecisionMambaCache, DecisionMambaConfig, DecisionMambaModel, DecisionMambaOutput

STATE_DIM, ACT_DIM = 5, 2


def make_model(seed=0, **overrides) -> DecisionMambaModel:
    """A small model whose parameters are all non-trivial, in evaluation mode and float64."""
    sizes = {"hidden_size": 16, "embedding_size": 12, "state_size": 4, "n_layer": 2, "max_ep_len": 64}
    config = DecisionMambaConfig.from_preset(
        "dema-b3ld", **{"state_dim": STATE_DIM, "act_dim": ACT_DIM, **sizes, **overrides}
    )
    torch.manual_seed(seed)
    model = DecisionMambaModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def make_inputs(batch=3, steps=6, seed=1, dtype=torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "states": draw(batch, steps, STATE_DIM),
        "actions": draw(batch, steps, ACT_DIM),
        "rewards": draw(batch, steps, 1),
        "returns_to_go": draw(batch, steps, 1),
        "timesteps": torch.arange(steps).expand(batch, steps),
    }


def take(inputs, steps, rows=slice(None)):
    return {name: tensor[rows, steps] for name, tensor in inputs.items()}


def padded(inputs, positions, length, garbage=1e3):
    """Rows spread over `length` steps, with garbage everywhere but at `positions` (a list of indices per row)."""
    rows = len(positions)
    result = {}
    for name, tensor in inputs.items():
        blank = torch.zeros(rows, length, *tensor.shape[2:], dtype=tensor.dtype)
        result[name] = blank if name == "timesteps" else blank + garbage
        for row, index in enumerate(positions):
            result[name][row, index] = tensor[row, : len(index)]
    result["attention_mask"] = torch.zeros(rows, length, dtype=torch.long)
    for row, index in enumerate(positions):
        result["attention_mask"][row, index] = 1
    return result


# ------------------------------------------------------------------------------------------------------ interface


def test_arguments_begin_as_decision_transformers_do():
    theirs = [name for name in inspect.signature(DecisionTransformerModel.forward).parameters if name != "kwargs"]
    ours = list(inspect.signature(DecisionMambaModel.forward).parameters)
    assert ours[: len(theirs)] == theirs


def test_output_fields_and_shapes():
    model, inputs = make_model(), make_inputs(batch=3, steps=6)
    output = model(*inputs.values(), output_hidden_states=True)
    assert output.action_preds.shape == (3, 6, ACT_DIM)
    assert output.action_preds.abs().max() <= 1  # tanh
    assert output.last_hidden_state.shape == (3, 18, 16)
    assert [h.shape for h in output.hidden_states] == [(3, 18, 16)] * 3
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    assert output.loss is output.state_preds is output.return_preds is output.cache_params is None


@pytest.mark.parametrize("heads", [False, True])
def test_tuples_and_indices_are_decision_transformers(heads):
    model, inputs = make_model(predict_state_and_return=heads), make_inputs()
    expected = model(**inputs, output_hidden_states=True)
    assert [f.name for f in fields(expected)] == [
        "loss",
        *[f.name for f in fields(DecisionTransformerOutput)],
        "cache_params",
    ]
    state_preds, action_preds, return_preds = model(**inputs, output_hidden_states=True, return_dict=False)
    by_index = expected[0], expected[1], expected[2]
    for found in ((state_preds, action_preds, return_preds), by_index, expected[:3], expected.to_tuple()[:3]):
        assert torch.equal(found[1], expected.action_preds)
        for other, named in zip(found[::2], (expected.state_preds, expected.return_preds), strict=True):
            assert (other is not None) == heads and (not heads or torch.equal(other, named))
    assert expected[3] is expected.hidden_states and expected[-1] is expected.last_hidden_state

    loss, *predictions, cache = model(**inputs, labels=inputs["actions"], use_cache=True, return_dict=False)
    output = model(**inputs, labels=inputs["actions"], use_cache=True)
    assert torch.equal(loss, output.loss) and output[0] is output.loss and output[2] is output.action_preds
    assert torch.equal(predictions[1], action_preds) and isinstance(cache, DecisionMambaCache)


def test_loss_is_the_masked_mean_squared_error():
    model, inputs = make_model(), make_inputs(batch=2, steps=4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = inputs["actions"].clone()
    labels[0, 0, 1] = -100  # unlabelled
    output = model(**inputs, attention_mask=mask, labels=labels)
    errors = (output.action_preds - labels).square()
    counted = mask.bool()[..., None] & (labels != -100)
    torch.testing.assert_close(output.loss.double(), errors[counted].mean(), rtol=1e-5, atol=1e-7)
    halved = model(**inputs, attention_mask=mask, labels=labels, num_items_in_batch=2 * counted.sum())
    torch.testing.assert_close(halved.loss * 2, output.loss)


def test_heads_without_labels_get_a_gradient_of_zero():
    """DDP waits for a gradient of every parameter; the loss and all other gradients are those without these heads."""
    model, plain, inputs = make_model(predict_state_and_return=True), make_model(), make_inputs()
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if name in plain.state_dict()})
    losses = [one(**inputs, labels=inputs["actions"]).loss for one in (model, plain)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = expected[name].grad if name in expected else torch.zeros_like(parameter)
        assert torch.equal(parameter.grad, gradient), name


def test_loss_of_a_batch_without_labels_is_zero():
    model, inputs = make_model(), make_inputs(batch=1, steps=2)
    labels = torch.full((1, 2, ACT_DIM), -100.0)
    assert model(**inputs, labels=labels).loss == 0


def test_previous_actions_are_the_shifted_actions():
    model, inputs = make_model(), make_inputs()
    previous = torch.cat([torch.zeros(3, 1, ACT_DIM, dtype=torch.float64), inputs["actions"][:, :-1]], dim=1)
    shifted = model(**inputs).action_preds
    torch.testing.assert_close(model(**inputs, previous_actions=previous).action_preds, shifted)
    previous[:, 0] = 1.0
    assert not torch.allclose(model(**inputs, previous_actions=previous).action_preds, shifted)


def test_no_prediction_depends_on_its_own_action_or_the_future():
    model, inputs = make_model(), make_inputs(batch=1, steps=6)
    before = model(**inputs).action_preds
    t = 3
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed["actions"][:, t] += 1
    for name in ("states", "actions", "returns_to_go"):
        changed[name][:, t + 1 :] += 1
    after = model(**changed).action_preds
    torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=0)
    assert not torch.allclose(after[:, t + 1], before[:, t + 1])


def test_timestep_embedding_is_used_when_asked_for():
    model, inputs = make_model(use_timestep_embedding=True), make_inputs()
    before = model(**inputs).action_preds
    assert not torch.allclose(model(**{**inputs, "timesteps": inputs["timesteps"] + 7}).action_preds, before)


# ------------------------------------------------------------------- what people wrote for DecisionTransformerModel


def test_the_example_of_decision_transformers_documentation_runs():
    """Returns-to-go of one step without their last dimension, and a mask of zeros."""
    model, returns = make_model().float(), torch.full((1, 1), 3.6)
    inputs = {
        "states": torch.ones(1, 1, STATE_DIM),
        "actions": torch.zeros(1, 1, ACT_DIM),
        "rewards": torch.zeros(1, 1),
    }
    inputs["timesteps"] = torch.tensor(0).reshape(1, 1)
    _, action_preds, _ = model(**inputs, returns_to_go=returns, attention_mask=torch.zeros(1, 1), return_dict=False)
    assert torch.isfinite(action_preds).all() and action_preds.shape == (1, 1, ACT_DIM)
    one = model(**inputs, returns_to_go=returns, attention_mask=torch.ones(1, 1))[1]
    assert torch.equal(one, model(**inputs, returns_to_go=returns[..., None])[1])


def choose(model, states, actions, rewards, returns_to_go, timesteps, context=4) -> torch.Tensor:
    """An action as evaluation loops of Decision Transformer choose it: padded on the left, three values unpacked."""
    count = min(context, len(states))
    mask = torch.cat([torch.zeros(context - count), torch.ones(count)]).to(torch.long)[None]

    def window(x):
        padding = torch.zeros(context - count, *x.shape[1:], dtype=x.dtype)
        return torch.cat([padding, x[-count:]])[None]

    _, action_preds, _ = model(
        states=window(states),
        actions=window(actions),
        rewards=window(rewards),
        returns_to_go=window(returns_to_go),
        timesteps=window(timesteps),
        attention_mask=mask,
        return_dict=False,
    )
    return action_preds[0, -1]


@pytest.mark.parametrize("preset", ["dema-b3ld", "dema-bl3d", "dmm", "decision-mamba"])
def test_an_evaluation_loop_acts_as_the_models_own_window(preset):
    sizes = {"state_dim": STATE_DIM, "act_dim": ACT_DIM, "hidden_size": 16, "n_layer": 1}
    model = DecisionMambaModel(DecisionMambaConfig.from_preset(preset, **sizes)).eval()
    inputs = make_inputs(batch=1, steps=8, dtype=torch.float32)
    with torch.no_grad():
        for t in range(8):
            known = [x[0, : t + 1].clone() for x in inputs.values()]
            known[1][-1] = 0  # an action is asked for, so it is not known
            start = max(0, t - 3)
            seen = take(inputs, slice(start, t + 1))
            expected = model(**{**seen, "actions": seen["actions"].clone()})
            torch.testing.assert_close(choose(model, *known), expected.action_preds[0, -1], rtol=0, atol=1e-5)


class LossInForward(DecisionMambaModel):
    """A model that a plain Trainer trains, as tutorials of Decision Transformer write it."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        action_preds = self.actions_of(output)
        real = inputs["attention_mask"].reshape(-1) > 0
        predicted = action_preds.reshape(-1, ACT_DIM)[real]
        return {"loss": torch.mean((predicted - inputs["actions"].reshape(-1, ACT_DIM)[real]) ** 2)}

    def actions_of(self, output):
        return output[1]


class LossByName(LossInForward):
    def actions_of(self, output):
        return output.action_preds


def plain_trainer(model, tmp_path, **options) -> Trainer:
    inputs = make_inputs(batch=8, steps=4, dtype=torch.float32)
    windows = [{name: x[row] for name, x in inputs.items()} for row in range(8)]
    for row, window in enumerate(windows):
        window["attention_mask"] = torch.ones(4)
        window["attention_mask"][: row % 3] = 0
    for window in windows if options.pop("labels", False) else []:
        window["labels"] = window["actions"]
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    settings["save_strategy"] = "no"
    arguments = TrainingArguments(str(tmp_path), max_steps=4, logging_steps=1, **settings)
    return Trainer(model, arguments, train_dataset=windows, eval_dataset=windows, **options)


def test_a_loss_of_output_1_trains_as_one_by_name(tmp_path):
    trained, losses = [], []
    for kind in (LossInForward, LossByName):
        model = kind(make_model().config)
        model.load_state_dict(make_model().state_dict())
        trainer = plain_trainer(model.float(), tmp_path)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        trained.append(model.state_dict())
    assert losses[0] == losses[1] and len(set(losses[0])) == 4
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("heads", [False, True])
def test_a_plain_trainer_predicts_actions_alone(heads, tmp_path):
    model, seen = make_model(predict_state_and_return=heads).float(), []

    def metrics(prediction):
        seen.append(prediction)
        return {"mse": float(((prediction.predictions - prediction.label_ids) ** 2).mean())}

    trainer = plain_trainer(model, tmp_path, labels=True, compute_metrics=metrics)
    trainer.evaluate()
    with torch.no_grad():
        expected = model(**trainer.data_collator(trainer.eval_dataset)).action_preds.numpy()
    assert np.array_equal(seen[0].predictions, expected)
    assert np.array_equal(trainer.predict(trainer.eval_dataset).predictions, expected)


# -------------------------------------------------------------------------------------------------------- padding


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_padding_anywhere_never_changes_a_real_step(data):
    model = make_model()
    length = data.draw(st.integers(1, 7))
    lengths = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    positions = [
        sorted(data.draw(st.permutations(range(length)))[:count])  # left, right, both sides, gaps
        for count in lengths
    ]
    inputs = make_inputs(batch=len(lengths), steps=length, seed=data.draw(st.integers(0, 99)))
    with torch.no_grad():
        batch = model(**padded(inputs, positions, length))
        for row, index in enumerate(positions):
            if index:
                alone = model(**take(inputs, slice(0, len(index)), [row])).action_preds[0]
                torch.testing.assert_close(batch.action_preds[row, index], alone, rtol=0, atol=1e-6)


def test_hidden_states_stay_where_their_steps_are():
    model, inputs = make_model(), make_inputs(batch=1, steps=4)
    batch = padded(inputs, [[1, 3, 4, 6]], length=7)
    alone = model(**inputs, output_hidden_states=True)
    output = model(**batch, output_hidden_states=True)
    tokens = [3 * step + kind for step in (1, 3, 4, 6) for kind in range(3)]
    for ours, expected in zip(output.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(ours[:, tokens], expected)


def test_padding_receives_no_gradient():
    model = make_model()
    batch = padded(make_inputs(batch=2, steps=5), [[0, 1, 2], [2, 3, 4, 5, 6]], length=7)
    states = batch["states"].requires_grad_()
    real = batch["attention_mask"].bool()
    model(**batch).action_preds[real].square().sum().backward()
    assert (states.grad[~real] == 0).all() and (states.grad[real] != 0).any()


# ----------------------------------------------------------------------------------------------------- recurrence


@settings(deadline=None, max_examples=20)
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5), batch=st.integers(1, 3))
def test_any_chunks_through_the_cache_equal_one_pass(chunks, batch):
    model, inputs = make_model(), make_inputs(batch=batch, steps=sum(chunks))
    with torch.no_grad():
        expected = model(**inputs).action_preds
        cache, start, predictions = None, 0, []
        for chunk in chunks:
            output = model(**take(inputs, slice(start, start + chunk)), cache_params=cache, use_cache=True)
            predictions.append(output.action_preds)
            cache, start = output.cache_params, start + chunk
    torch.testing.assert_close(torch.cat(predictions, dim=1), expected, rtol=0, atol=1e-10)


def test_chunks_with_padding_leave_the_states_of_the_real_steps():
    model, inputs = make_model(), make_inputs(batch=2, steps=6)
    lengths = [2, 5]  # the rows advance at their own pace
    with torch.no_grad():
        first = padded(inputs, [[1, 4], [0, 1, 2, 3, 4]], length=5)
        cache = model(**first, use_cache=True).cache_params
        rest = {
            name: torch.stack([tensor[row, count : count + 1] for row, count in enumerate(lengths)])
            for name, tensor in inputs.items()
        }
        now = model(**rest, cache_params=cache).action_preds
        expected = model(**inputs).action_preds
    torch.testing.assert_close(now[:, 0], torch.stack([expected[0, 2], expected[1, 5]]), rtol=0, atol=1e-10)


def test_a_masked_step_leaves_a_row_as_it_was():
    model, inputs = make_model(), make_inputs(batch=2, steps=4)
    with torch.no_grad():
        cache = model(**take(inputs, slice(0, 2)), use_cache=True).cache_params
        before = [state.clone() for state in (*cache.ssm_states, *cache.conv_states, cache.last_actions)]
        model(**take(inputs, slice(2, 3)), attention_mask=torch.tensor([[0], [1]]), cache_params=cache)
    after = (*cache.ssm_states, *cache.conv_states, cache.last_actions)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[0], new[0]) and not torch.equal(old[1], new[1])


@pytest.mark.parametrize("rows", [[1], torch.tensor([False, True, False]), torch.tensor([1])])
def test_reset_restarts_single_rows(rows):
    model, inputs = make_model(), make_inputs(batch=3, steps=4)
    with torch.no_grad():
        cache = model(**take(inputs, slice(0, 2)), use_cache=True).cache_params
        cache.reset(rows)
        continued = model(**take(inputs, slice(2, 4)), cache_params=cache).action_preds
        whole = model(**inputs).action_preds[:, 2:]
        fresh = model(**take(inputs, slice(2, 4))).action_preds
    torch.testing.assert_close(continued[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-10)
    torch.testing.assert_close(continued[1], fresh[1], rtol=0, atol=1e-10)


def test_reorder_selects_rows():
    model, inputs = make_model(), make_inputs(batch=3, steps=3)
    with torch.no_grad():
        cache = model(**take(inputs, slice(0, 2)), use_cache=True).cache_params
        cache.reorder([2, 2, 0, 1])
        assert cache.batch_size == 4
        output = model(**take(inputs, slice(2, 3), [2, 2, 0, 1]), cache_params=cache)
        expected = model(**inputs).action_preds[[2, 2, 0, 1], 2:]
    torch.testing.assert_close(output.action_preds, expected, rtol=0, atol=1e-10)


def test_a_new_cache_stands_at_the_start_of_an_episode():
    model, inputs = make_model(), make_inputs(batch=2, steps=3)
    cache = DecisionMambaCache(model.config, batch_size=2, dtype=torch.float64).to("cpu")
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs, cache_params=cache).action_preds, model(**inputs).action_preds, rtol=0, atol=1e-10
        )


# ----------------------------------------------------------------------------------------------------- time scale


def test_a_long_step_lets_what_was_before_fade():
    model, inputs = make_model(), make_inputs(batch=1, steps=6)
    scale = torch.ones(1, 6)
    scale[:, 3] = 1e6
    other = {name: tensor.clone() for name, tensor in inputs.items()}
    other["states"][:, 0] += 1
    with torch.no_grad():
        states = [
            model(**i, use_cache=True, time_scale=s).cache_params.ssm_states
            for i in (inputs, other)
            for s in (None, scale)
        ]
    plain, faded, plain_other, faded_other = (torch.cat(state) for state in states)
    assert not torch.allclose(plain, plain_other, rtol=1e-6)
    assert torch.isfinite(faded).all()
    torch.testing.assert_close(faded[:1], faded_other[:1], rtol=1e-9, atol=0)


def test_no_gradient_flows_to_a_time_scale():
    model, inputs = make_model(), make_inputs()
    scale = torch.full((3, 6), 2.0, requires_grad=True)
    model(**inputs, labels=inputs["actions"], time_scale=scale).loss.backward()
    assert scale.grad is None and model.embed_state.weight.grad.any()


def test_a_time_scale_compiles_to_one_graph_and_passes_activation_checkpointing():
    model, inputs = make_model(resid_pdrop=0.0, token_order=["return", "state", "action"]).train(), make_inputs()
    inputs["time_scale"] = 1 + torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    inputs["attention_mask"] = torch.tensor([[0, 1, 1, 1, 1, 1]]).expand(3, 6)

    def gradients(function):
        model.zero_grad()
        function(**inputs, labels=inputs["actions"]).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients(model)
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    checkpointed = gradients(model)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, msg=name)
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


# ------------------------------------------------------------------------------------- a transformers model of today


def test_save_and_load(tmp_path):
    model, inputs = make_model().float(), make_inputs(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(loaded, DecisionMambaModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DecisionMambaConfig)
    torch.testing.assert_close(loaded(**inputs).action_preds, model(**inputs).action_preds, rtol=0, atol=0)


def test_missing_weights_are_initialised_from_meta(tmp_path):
    """Loading builds the model on the meta device; parameters that the file lacks must come out initialised."""
    model = make_model().float()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.0" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded, _ = DecisionMambaModel.from_pretrained(tmp_path, output_loading_info=True)
    mixer = loaded.layers[0].mixer
    torch.testing.assert_close(mixer.A_log, torch.log(torch.arange(1.0, 5.0)).expand(32, 4))
    torch.testing.assert_close(mixer.D, torch.ones(32))
    assert (loaded.layers[0].norms["mixer"].weight == 1).all()
    step_sizes = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert step_sizes.min() > 0.9e-3 and step_sizes.max() < 0.11
    for name, parameter in loaded.layers[0].named_parameters():
        assert torch.isfinite(parameter).all() and parameter.abs().max() < 10, name
    torch.testing.assert_close(loaded.layers[1].mixer.D, model.layers[1].mixer.D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(dtype, tmp_path):
    model, inputs = make_model().float(), make_inputs(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    half = DecisionMambaModel.from_pretrained(tmp_path, dtype=dtype)
    output = half(**inputs, use_cache=True)
    assert output.action_preds.dtype == dtype
    torch.testing.assert_close(output.action_preds.float(), model(**inputs).action_preds, rtol=0, atol=0.06)
    assert output.cache_params.ssm_states[0].dtype == torch.float32


def test_activation_checkpointing_gives_the_same_gradients():
    model, inputs = make_model(resid_pdrop=0.0).train(), make_inputs()

    def gradients():
        model.zero_grad()
        model(**inputs, labels=inputs["actions"], use_cache=True).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    checkpointed = gradients()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_every_parameter_receives_a_gradient():
    model, inputs = make_model(use_timestep_embedding=True), make_inputs()
    model(**inputs, labels=inputs["actions"]).loss.backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert without == []


def test_dropout_only_while_training():
    model, inputs = make_model(embd_pdrop=0.5, resid_pdrop=0.5), make_inputs()
    torch.testing.assert_close(model(**inputs).action_preds, model(**inputs).action_preds, rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(**inputs).action_preds, model(**inputs).action_preds)


def test_compiles_to_one_graph():
    model, inputs = make_model(), make_inputs()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).action_preds, model(**inputs).action_preds)
    assert len(graphs) == 1


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(3, 6, 4)}, r"states has shape \(3, 6, 4\); expected \(3, 6, 5\)"),
        ({"states": torch.zeros(3, 5)}, r"states has shape \(3, 5\); expected \(batch, steps, 5\)"),
        ({"states": torch.zeros(3, 0, 5)}, "with at least one step"),
        ({"actions": torch.zeros(3, 6, 3)}, r"actions has shape \(3, 6, 3\); expected \(3, 6, 2\)"),
        ({"returns_to_go": torch.zeros(3, 6)}, r"returns_to_go has shape \(3, 6\); expected \(3, 6, 1\)"),
        ({"attention_mask": torch.ones(3, 5)}, r"attention_mask has shape \(3, 5\)"),
        ({"time_scale": torch.ones(3, 6, 1)}, r"time_scale has shape \(3, 6, 1\); expected \(3, 6\)"),
        ({"time_scale": torch.tensor([1.0, 2, 0, 1, 1, 1]).expand(3, 6)}, r"time_scale is 0\.0 at step 2 of row 0"),
        ({"time_scale": torch.full((3, 6), -1)}, r"time_scale is -1 at .* must be positive and finite"),
        ({"time_scale": torch.full((3, 6), torch.inf)}, "time_scale is inf at"),
        ({"time_scale": torch.full((3, 6), torch.nan)}, "time_scale is nan at"),
        ({"actions": None}, "one of actions or previous_actions"),
        ({"states": None}, "states, returns_to_go and one of"),
        ({"cache_params": DecisionMambaCache(DecisionMambaConfig(), batch_size=2)}, "holds 2 rows, but the batch has"),
    ],
)
def test_wrong_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{**make_inputs(), **change})


def test_missing_timesteps_are_named():
    inputs = make_inputs()
    del inputs["timesteps"]
    with pytest.raises(ValueError, match="timesteps are required"):
        make_model(use_timestep_embedding=True)(**inputs)
    assert isinstance(make_model()(**inputs), DecisionMambaOutput)  # and not needed without the embedding


@pytest.mark.parametrize(
    ("step", "message"),
    [(64, r"range from 64 to 64, .* 0 to 63 \(max_ep_len\)"), (-1, "range from -1 to -1, but")],
)
def test_timesteps_that_the_embedding_does_not_know_are_named(step, message):
    inputs = {**make_inputs(), "timesteps": torch.full((3, 6), step)}
    with pytest.raises(ValueError, match=f"timesteps {message}"):
        make_model(use_timestep_embedding=True)(**inputs)
    model = make_model()  # whose episodes may be as long as they are
    torch.testing.assert_close(model(**inputs).action_preds, model(**make_inputs()).action_preds, rtol=0, atol=0)
