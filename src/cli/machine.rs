//! Devices and types as flags.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::config::DeviceKind;
use crate::config::model::DtypeKind;

/// One of `taken`, which the help lists.
pub fn device(taken: &[DeviceKind]) -> impl TypedValueParser<Value = DeviceKind> + use<> {
    PossibleValuesParser::new(taken.iter().map(|kind| kind.name())).try_map(|text| text.parse::<DeviceKind>())
}

/// One of `taken`, which the help lists.
pub fn dtype(taken: &[DtypeKind]) -> impl TypedValueParser<Value = DtypeKind> + use<> {
    PossibleValuesParser::new(taken.iter().map(|kind| kind.name())).try_map(|text| text.parse::<DtypeKind>())
}
