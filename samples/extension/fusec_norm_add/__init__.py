"""The norm behind a sublayer and its residual connection, as OLMo 2 has both twice a layer."""

FUSEC_API = 1
