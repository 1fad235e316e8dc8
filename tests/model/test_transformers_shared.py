"""transformers' own tests of a model (ModelTesterMixin, ConfigTester), run on ours.

They are not part of the transformers package, so this file collects nothing unless TRANSFORMERS_SOURCE names a source
checkout of transformers, best of the version that is installed:

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers
    pip install parameterized requests
    PYTHONPATH=transformers TRANSFORMERS_SOURCE=transformers \
        pytest --import-mode=prepend -W default tests/model/test_transformers_shared.py

Skipped by name, and why:
* test_model_get_set_embeddings wants an `nn.Embedding` for input ids; these models embed vectors (as in
  DecisionTransformer's own test).
* test_retain_grad_hidden_states_attentions runs without a mask: with one, hidden states are returned where the caller
  has the steps, which is a copy of what the layers saw.
"""

import os

if os.environ.get("TRANSFORMERS_SOURCE"):
    import copy
    import unittest

    import torch
    from tests.test_configuration_common import ConfigTester
    from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

    from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel

    class DecisionMambaTester:
        """What the shared tests ask for: a small config and inputs."""

        batch_size, seq_length, hidden_size, num_hidden_layers, is_training = 3, 7, 16, 2, True

        def __init__(self, preset: str):
            self.preset = preset
            self.encoder_seq_length = self.seq_length * len(self.get_config().token_types)

        def get_config(self) -> DecisionMambaConfig:
            sizes = {"hidden_size": self.hidden_size, "n_layer": self.num_hidden_layers, "state_size": 4}
            width = {"embedding_size": 12} if self.preset.startswith("dema-b") else {}
            # With all of DecisionTransformer's heads: the tests read output[0], its state_preds.
            return DecisionMambaConfig.from_preset(
                self.preset,
                state_dim=5,
                act_dim=3,
                max_ep_len=64,
                head_dim=4,
                predict_state_and_return=True,
                **sizes,
                **width,
            )

        def prepare_config_and_inputs_for_common(self):
            shape = (self.batch_size, self.seq_length)
            return self.get_config(), {
                "states": floats_tensor((*shape, 5)),
                "actions": floats_tensor((*shape, 3)),
                "rewards": floats_tensor((*shape, 1)),
                "returns_to_go": floats_tensor((*shape, 1)),
                "timesteps": ids_tensor(shape, vocab_size=64),
                "attention_mask": random_attention_mask(shape),
            }

    class SharedTests(ModelTesterMixin):
        preset: str
        all_model_classes = (DecisionMambaModel,)
        has_attentions = False
        test_resize_embeddings = False

        def setUp(self):
            self.model_tester = DecisionMambaTester(self.preset)
            self.config_tester = ConfigTester(
                self,
                config_class=DecisionMambaConfig,
                has_text_modality=False,
                common_properties=["hidden_size", "num_hidden_layers"],
                hidden_size=16,
            )

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = copy.deepcopy(inputs_dict)
            if return_labels:
                inputs["labels"] = torch.zeros_like(inputs["actions"])
            return inputs

        def test_config(self):
            self.config_tester.run_common_tests()

        def test_retain_grad_hidden_states_attentions(self):
            prepare = self.model_tester.prepare_config_and_inputs_for_common

            def without_mask():
                config, inputs = prepare()
                del inputs["attention_mask"]
                return config, inputs

            self.model_tester.prepare_config_and_inputs_for_common = without_mask
            super().test_retain_grad_hidden_states_attentions()

        @unittest.skip("embeds vectors, not input ids")
        def test_model_get_set_embeddings(self):
            pass

    class TestDemaB3LD(SharedTests, unittest.TestCase):
        preset = "dema-b3ld"

    class TestDemaBL3D(SharedTests, unittest.TestCase):
        preset = "dema-bl3d"

    class TestDemaPost(SharedTests, unittest.TestCase):
        preset = "dema-post"

    class TestDMM(SharedTests, unittest.TestCase):
        preset = "dmm"

    class TestDMMConv(SharedTests, unittest.TestCase):
        preset = "dmm-conv"

    class TestDMMMamba2(SharedTests, unittest.TestCase):
        preset = "dmm-mamba2"

    class TestDecisionMamba(SharedTests, unittest.TestCase):
        preset = "decision-mamba"

    del SharedTests  # pytest would collect the class without a preset, too
