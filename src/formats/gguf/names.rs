//! What GGUF calls a parameter, and the order in which it keeps its rows.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::model::config::{Family, ModelConfig};

/// llama.cpp's table of rotary divisors, how llama3 scaling is stored in GGUF. f32 `[head_dim / 2]`
pub(super) const ROPE_TABLE: &str = "rope_freqs.weight";

/// GGUF's name of a Hugging Face parameter.
pub fn gguf_name(name: &str) -> String {
    let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = parts else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            _ => "output.weight",
        }
        .into();
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        _ => "ffn_down",
    };
    format!("blk.{layer}.{part}.{kind}")
}

/// Heads of a parameter whose rows GGUF keeps in another order; `None` for all others.
fn rotated_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    if config.family != Family::Llama {
        return None;
    }
    match name.rsplit_once(".self_attn.")?.1 {
        "q_proj.weight" | "q_proj.bias" => Some(config.num_attention_heads),
        "k_proj.weight" | "k_proj.bias" => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// A parameter's rows in Hugging Face's order, from those of GGUF.
pub(super) fn hf_rows(config: &ModelConfig, name: &str, tensor: Tensor) -> Result<Tensor> {
    let Some(heads) = rotated_heads(config, name) else { return Ok(tensor) };
    rotate_half_rows(&tensor, heads).map_err(|e| Error::Compute(Box::new(e)))
}

/// [`hf_rows`] undone.
pub(super) fn gguf_rows(config: &ModelConfig, name: &str, tensor: &Tensor) -> Result<Tensor> {
    let Some(heads) = rotated_heads(config, name) else { return Ok(tensor.clone()) };
    interleaved_rows(tensor, heads).map_err(|e| Error::Compute(Box::new(e)))
}

/// Undoes GGUF's row order of `attn_q` and `attn_k`: within each head it stores the two channels of a rotated
/// pair side by side (0, d/2, 1, d/2 + 1, ...), where Hugging Face keeps the halves apart (0, 1, ..., d - 1).
fn rotate_half_rows(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let pairs = tensor.dim(0)? / heads / 2;
    let columns = tensor.elem_count() / tensor.dim(0)?;
    tensor.reshape((heads, pairs, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

/// [`rotate_half_rows`] undone.
fn interleaved_rows(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let pairs = tensor.dim(0)? / heads / 2;
    let columns = tensor.elem_count() / tensor.dim(0)?;
    tensor.reshape((heads, 2, pairs, columns))?.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pairs_stored_side_by_side_go_back_to_halves() {
        // Two heads of four channels: GGUF order 0 2 1 3 within each.
        let stored =
            Tensor::new(&[[0f32], [2.], [1.], [3.], [10.], [12.], [11.], [13.]], &Device::Cpu).unwrap();
        let rows = rotate_half_rows(&stored, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(rows, [0., 1., 2., 3., 10., 11., 12., 13.]);
        let again = interleaved_rows(&rotate_half_rows(&stored, 2).unwrap(), 2).unwrap();
        assert_eq!(again.to_vec2::<f32>().unwrap(), stored.to_vec2::<f32>().unwrap());
    }
}
