//! What people report of trainers, servers and converters, tried on the binary: input, command, exit code, and what must be
//! said in at most eight lines of errors. What is wrong with a model's folder itself is in `bad_input/models.rs`, adapters
//! are in `lora.rs`, split GGUF files in `gguf_parts.rs`, rows in two files in `data_files.rs`.

mod conversations;
mod files;
mod models;
