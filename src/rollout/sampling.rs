use crate::config::sampling::SamplingConfig;
use crate::ops::sampling::Sampling;

/// The `[grpo.sampling]` or `[eval.sampling]` section as the op takes it.
impl From<&SamplingConfig> for Sampling {
    fn from(config: &SamplingConfig) -> Self {
        let SamplingConfig { temperature, top_k, top_p, min_p, replay_truncation, .. } = *config;
        Self { temperature, top_k, top_p, min_p, replay_truncation }
    }
}
