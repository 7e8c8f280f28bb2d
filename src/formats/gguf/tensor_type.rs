//! ggml's types of tensors: their numbers and names.

use candle_core::quantized::GgmlDType;

/// How a tensor is stored: ggml's number for it, its name, and candle's type where it can be dequantised.
#[derive(Clone, Copy)]
pub(super) struct TensorType {
    number: u32,
    /// Empty for a number that is not known.
    name: &'static str,
    pub(super) dtype: Option<GgmlDType>,
}

impl TensorType {
    pub(super) fn of(number: u32) -> Self {
        use GgmlDType as D;
        let (name, dtype) = match number {
            0 => ("F32", Some(D::F32)),
            1 => ("F16", Some(D::F16)),
            2 => ("Q4_0", Some(D::Q4_0)),
            3 => ("Q4_1", Some(D::Q4_1)),
            6 => ("Q5_0", Some(D::Q5_0)),
            7 => ("Q5_1", Some(D::Q5_1)),
            8 => ("Q8_0", Some(D::Q8_0)),
            9 => ("Q8_1", None),
            10 => ("Q2_K", Some(D::Q2K)),
            11 => ("Q3_K", Some(D::Q3K)),
            12 => ("Q4_K", Some(D::Q4K)),
            13 => ("Q5_K", Some(D::Q5K)),
            14 => ("Q6_K", Some(D::Q6K)),
            15 => ("Q8_K", None),
            16 => ("IQ2_XXS", None),
            17 => ("IQ2_XS", None),
            18 => ("IQ3_XXS", None),
            19 => ("IQ1_S", None),
            20 => ("IQ4_NL", None),
            21 => ("IQ3_S", None),
            22 => ("IQ2_S", None),
            23 => ("IQ4_XS", None),
            29 => ("IQ1_M", None),
            30 => ("BF16", Some(D::BF16)),
            34 => ("TQ1_0", None),
            35 => ("TQ2_0", None),
            39 => ("MXFP4", None),
            _ => ("", None),
        };
        Self { number, name, dtype }
    }

    pub(super) fn label(self) -> String {
        if self.name.is_empty() { format!("number {}", self.number) } else { self.name.into() }
    }
}

/// ggml's number for `dtype`.
pub(super) fn type_number(dtype: GgmlDType) -> u32 {
    // All of candle's types have one; the bound is past the highest.
    (0..64).find(|&number| TensorType::of(number).dtype == Some(dtype)).unwrap_or_default()
}

/// ggml's name of `dtype`.
pub(super) fn type_name(dtype: GgmlDType) -> &'static str {
    TensorType::of(type_number(dtype)).name
}
