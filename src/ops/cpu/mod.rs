//! Loops behind ops whose CPU side is more than a page.

pub mod attention;
pub mod few_rows;
