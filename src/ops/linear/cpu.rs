//! Linear layers on the CPU.

use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Tensor};

use crate::error::Result;
use crate::ops::cpu::few_rows;
use crate::ops::cpu::gemm::{Mat, MatMut, Threads, Write, gemm, product};
use crate::ops::cpu::widened::{View, slice, slice_mut, tensor_as};
use crate::ops::fault::fault;

/// As [`super::forward_all`], with the results in `dtype`.
pub(super) fn forward_all_as<const N: usize>(
    x_nh: &Tensor,
    w_oh: [&Tensor; N],
    dtype: DType,
) -> Result<[Tensor; N]> {
    let (n, h) = x_nh.dims2()?;
    let x = View::new(x_nh)?;
    let views = w_oh.iter().map(|w| View::new(w)).collect::<Result<Vec<_>>>()?;
    let w: [&[f32]; N] = std::array::from_fn(|i| &*views[i]);
    let all = if n <= few_rows::MAX_ROWS {
        few_rows::products(&x, [n, h], w)
    } else {
        let x = Mat::row_major(&x, n, h);
        w.map(|w| product(x, Mat::row_major(w, w.len() / h, h).t(), Threads::Pool))
    };
    let all = all.into_iter().zip(w_oh).map(|(y, w)| tensor_as(y, (n, w.dim(0)?), dtype));
    let all = all.collect::<Result<Vec<_>>>()?;
    all.try_into().map_err(|_| fault("forward_all: one result a weight"))
}

/// A bias is a layer with one input, which is always 1.
pub(super) fn add_bias(y_no: &Tensor, bias_o: &Tensor) -> Result<Tensor> {
    let ones = Tensor::ones((y_no.dim(0)?, 1), y_no.dtype(), y_no.device())?;
    forward_add(y_no, &ones, &bias_o.reshape((bias_o.elem_count(), 1))?)
}

pub(super) fn forward_add(residual_no: &Tensor, x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    let ((n, h), (o, _)) = (x_nh.dims2()?, w_oh.dims2()?);
    let (x, w) = (View::new(x_nh)?, View::new(w_oh)?);
    if n <= few_rows::MAX_ROWS {
        let [mut y] = few_rows::products(&x, [n, h], [&w]);
        y.iter_mut().zip(View::new(residual_no)?.iter()).for_each(|(y, r)| *y += r);
        return tensor_as(y, (n, o), x_nh.dtype());
    }
    let mut y = View::new(residual_no)?.to_vec();
    let out = MatMut { data: &mut y, row_stride: o };
    gemm(Mat::row_major(&x, n, h), Mat::row_major(&w, o, h).t(), out, Write::Accumulate, Threads::Pool);
    tensor_as(y, (n, o), x_nh.dtype())
}

pub(super) fn backward_input(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let Some(((first_dy, first_w), rest)) = pairs.split_first() else {
        return Err(fault("backward_input needs at least one layer"));
    };
    let ((n, o), (_, h)) = (first_dy.dims2()?, first_w.dims2()?);
    let mut dx = {
        let (dy, w) = (View::new(first_dy)?, View::new(first_w)?);
        product(Mat::row_major(&dy, n, o), Mat::row_major(&w, o, h), Threads::Pool)
    };
    for (dy, w) in rest {
        let o = dy.dim(1)?;
        let (dy, w) = (View::new(dy)?, View::new(w)?);
        let out = MatMut { data: &mut dx, row_stride: h };
        gemm(Mat::row_major(&dy, n, o), Mat::row_major(&w, o, h), out, Write::Accumulate, Threads::Pool);
    }
    tensor_as(dx, (n, h), first_dy.dtype())
}

pub(super) fn backward_weight(dw_oh: &Tensor, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
    Ok(dw_oh.inplace_op3(dy_no, x_nh, &AccumulateOuter)?)
}

struct AccumulateOuter;

impl InplaceOp3 for AccumulateOuter {
    fn name(&self) -> &'static str {
        "linear-backward-weight"
    }

    fn cpu_fwd(
        &self,
        dw: &mut CpuStorage,
        l_dw: &Layout,
        dy: &CpuStorage,
        l_dy: &Layout,
        x: &CpuStorage,
        l_x: &Layout,
    ) -> candle_core::Result<()> {
        let ((n, o), (_, h)) = (l_dy.shape().dims2()?, l_x.shape().dims2()?);
        let (dy, x, mut dw) = (slice(dy, l_dy)?, slice(x, l_x)?, slice_mut(dw, l_dw)?);
        let out = MatMut { data: &mut dw, row_stride: h };
        gemm(Mat::row_major(&dy, n, o).t(), Mat::row_major(&x, n, h), out, Write::Accumulate, Threads::Pool);
        Ok(())
    }
}

pub(super) fn weight_gradient_as(dy_no: &Tensor, x_nh: &Tensor, dtype: DType) -> Result<Tensor> {
    let ((n, o), (_, h)) = (dy_no.dims2()?, x_nh.dims2()?);
    let (dy, x) = (View::new(dy_no)?, View::new(x_nh)?);
    let dw = product(Mat::row_major(&dy, n, o).t(), Mat::row_major(&x, n, h), Threads::Pool);
    tensor_as(dw, (o, h), dtype)
}
