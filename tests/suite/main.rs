//! All integration tests, in one binary: each module states facts about one contract of docs/design.md.

mod ablate;
mod adamw;
mod advantages;
mod bad_input;
mod best;
mod budget;
mod cases;
mod circles;
mod config_fields;
mod configs;
mod control_tokens;
#[cfg(feature = "cuda")]
mod cuda_attention;
#[cfg(feature = "cuda")]
mod cuda_model;
#[cfg(feature = "cuda")]
mod cuda_ops;
#[cfg(feature = "cuda")]
mod cuda_ranks;
#[cfg(feature = "cuda")]
mod cuda_trace;
#[cfg(feature = "cuda")]
mod cuda_twin;
mod curve;
mod data_files;
mod distill;
mod divergence;
mod doctor;
mod enumerate;
mod export;
mod families;
mod first_hour;
mod from_trl;
mod front;
mod fuzz;
mod gguf_parts;
mod gpu_scripts;
mod hub;
mod hub_data;
mod import;
mod kernels;
mod kernels_adamw;
mod kernels_attention;
mod kernels_decode;
mod kernels_sampling;
mod kernels_state;
mod layering;
mod limits;
mod lora;
mod losses;
mod mirror;
mod missing_ids;
mod mixing;
mod mlflow;
mod model_parity;
#[cfg(target_os = "linux")]
mod mounted_bucket;
mod node_scripts;
mod ops;
mod policy;
mod probabilities;
mod ranks;
mod recorded_answers;
mod reference;
mod repetition;
mod reports;
mod reward_addresses;
mod reward_page;
mod reward_programs;
mod reward_runs;
mod shared_prefix;
mod sister_tasks;
mod smollm2;
mod stalls;
mod stops;
mod support;
mod templates;
mod thresholds;
mod top_entropy;
mod training;
mod tutorial;
mod weights;
