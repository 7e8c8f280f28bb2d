//! Rows of a matrix by index on a CUDA device.

use candle_core::{DType, Tensor};

use super::{Runs, check};
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, row_threads, uninit, upload};
use crate::ops::fault::fault;
use crate::ops::indices::Indices;

/// `table_vh: [V, H]`, f32 or bf16, `rows`: N indices -> `[N, H]`.
///
/// # Errors
/// For an index outside the table, or when the device fails; so for every function here.
pub fn gather(table_vh: &Tensor, rows: &Indices) -> Result<Tensor> {
    check(rows, table_vh.dim(0)?)?;
    gather_at(table_vh, rows.there(table_vh.device())?)
}

/// Runs of rows of two matrices of one width and type, one below the other.
pub fn gather_runs(parts: [&Tensor; 2], runs: &Runs) -> Result<Tensor> {
    let [a, b] = parts;
    let ((rows_a, width), (rows_b, width_b)) = (a.dims2()?, b.dims2()?);
    if width != width_b || a.dtype() != b.dtype() || runs.end(0) > rows_a || runs.end(1) > rows_b {
        let ends = [runs.end(0), runs.end(1)];
        return Err(fault(format!(
            "gather_runs: rows up to {ends:?} of {:?} and {:?}",
            a.shape(),
            b.shape()
        )));
    }
    let (device, dtype, n) = (a.device(), a.dtype(), runs.rows());
    let out = uninit(device, (n, width), dtype)?;
    Launch::typed(device, "embedding", "embedding_gather_of_two", dtype)?
        .tensor(a)?
        .tensor(b)?
        .tensor(runs.there(device)?)?
        .tensor(&out)?
        .u32(width as u32)
        .run(Grid::line(n as u32, row_threads(width, dtype).min(256)))?;
    Ok(out)
}

/// [`gather`] with `rows_n: [N]` u32 on the device. An index outside the table gives a row of NaN.
pub fn gather_at(table_vh: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
    let ((v, h), n) = (table_vh.dims2()?, rows_n.dims1()?);
    if rows_n.dtype() != DType::U32 {
        return Err(fault(format!("gather: rows must be u32, got {:?}", rows_n.dtype())));
    }
    let (device, dtype) = (table_vh.device(), table_vh.dtype());
    let out = uninit(device, (n, h), dtype)?;
    Launch::typed(device, "embedding", "embedding_gather", dtype)?
        .tensor(table_vh)?
        .tensor(rows_n)?
        .tensor(&out)?
        .u32(v as u32)
        .u32(h as u32)
        .run(Grid::line(n as u32, row_threads(h, dtype).min(256)))?;
    Ok(out)
}

fn check_values(table_vh: &Tensor, rows: usize, values_nh: &Tensor) -> Result<()> {
    let sum_in_f32 = table_vh.dtype() == DType::F32 && values_nh.dtype() == DType::BF16;
    if values_nh.dims() != [rows, table_vh.dim(1)?] || !(values_nh.dtype() == table_vh.dtype() || sum_in_f32)
    {
        let (table, values) = (table_vh.shape(), values_nh.shape());
        return Err(fault(format!("scatter: {rows} rows, values {values:?}, a table {table:?}")));
    }
    Ok(())
}

/// `table_vh[rows[i]] = values_nh[i]`, in place; of equal rows the last stays.
pub fn scatter(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    check_values(table_vh, rows.len(), values_nh)?;
    let (v, h) = table_vh.dims2()?;
    check(rows, v)?;
    scatter_at(table_vh, rows.last_there(table_vh.device())?, values_nh, h)
}

fn scatter_at(table_vh: &Tensor, rows_n: &Tensor, values_nh: &Tensor, h: usize) -> Result<()> {
    if table_vh.dtype() != values_nh.dtype() {
        return Err(fault("scatter: table and values must be of one type"));
    }
    Launch::typed(table_vh.device(), "embedding", "embedding_scatter", table_vh.dtype())?
        .tensor(table_vh)?
        .tensor(rows_n)?
        .tensor(values_nh)?
        .u32(table_vh.dim(0)? as u32)
        .u32(h as u32)
        .run(Grid::line(rows_n.dims1()? as u32, row_threads(h, table_vh.dtype()).min(256)))
}

/// Equal rows together, for the scatter-add kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// Distinct rows, ascending. `[D]`
    pub rows: Vec<u32>,
    /// Where each one's indices begin in `order`, and the end. `[D + 1]`
    pub starts: Vec<u32>,
    /// Indices into the values, by row, equal rows in their first order. `[N]`
    pub order: Vec<u32>,
}

impl Grouped {
    pub fn new(rows: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_by_key(|i| rows[*i as usize]); // stable
        let mut grouped = Self { rows: Vec::new(), starts: Vec::new(), order };
        for (at, i) in grouped.order.iter().enumerate() {
            let row = rows[*i as usize];
            if grouped.rows.last() != Some(&row) {
                grouped.rows.push(row);
                grouped.starts.push(at as u32);
            }
        }
        grouped.starts.push(rows.len() as u32);
        grouped
    }
}

/// `table_vh[rows[i]] += values_nh[i]`, in place, in the order of `rows`. bf16 values may go into an f32 table.
pub fn scatter_add(table_vh: &Tensor, rows: &Indices, values_nh: &Tensor) -> Result<()> {
    check_values(table_vh, rows.len(), values_nh)?;
    check(rows, table_vh.dim(0)?)?;
    let grouped = Grouped::new(rows.as_slice());
    if grouped.rows.is_empty() {
        return Ok(());
    }
    let device = table_vh.device();
    // One upload for all three.
    let (d, n) = (grouped.rows.len(), grouped.order.len());
    let all = upload(&[grouped.rows, grouped.starts, grouped.order].concat(), device)?;
    let h = table_vh.dim(1)?;
    let dtype = values_nh.dtype();
    let kernel =
        if table_vh.dtype() == dtype { "embedding_scatter_add" } else { "embedding_scatter_add_to_f32" };
    let columns = h.div_ceil(128 * (16 / dtype.size_in_bytes())) as u32;
    Launch::typed(device, "embedding", kernel, dtype)?
        .tensor(table_vh)?
        .tensor(&all.narrow(0, 0, d)?)?
        .tensor(&all.narrow(0, d, d + 1)?)?
        .tensor(&all.narrow(0, 2 * d + 1, n)?)?
        .tensor(values_nh)?
        .u32(h as u32)
        .run(Grid { blocks: [d as u32, columns, 1], threads: 128, shared_bytes: 0 })
}

#[cfg(test)]
mod tests {
    use super::Grouped;

    #[test]
    fn equal_rows_come_together_in_their_order() {
        let grouped = Grouped::new(&[7, 2, 7, 0, 2, 7]);
        assert_eq!(grouped.rows, [0, 2, 7]);
        assert_eq!(grouped.starts, [0, 1, 3, 6]);
        assert_eq!(grouped.order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(Grouped::new(&[]).starts, [0]);
    }
}
