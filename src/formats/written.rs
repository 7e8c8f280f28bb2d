//! What a writer says of its files.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a format's writer wrote.
#[derive(Debug, Serialize)]
pub struct Written {
    /// How each tensor is stored, such as `Q8_0`, by Hugging Face name.
    #[serde(skip)]
    pub stored_as: BTreeMap<String, String>,
    /// Tensor data, in bytes.
    pub bytes: u64,
    /// What the format cannot say, a sentence each.
    pub notes: Vec<String>,
}
