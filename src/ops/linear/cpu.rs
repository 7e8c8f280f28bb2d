//! Linear layers on the CPU.

use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Tensor};

use crate::error::Result;
use crate::ops::cpu::few_rows;
use crate::ops::cpu::gemm::{Mat, MatMut, Threads, Write, gemm, product};
use crate::ops::cpu::widened::{View, slice, slice_mut, tensor_as};

/// `x W^T` in `dtype`.
pub(super) fn forward_as(x_nh: &Tensor, w_oh: &Tensor, dtype: DType) -> Result<Tensor> {
    let ((n, h), (o, _)) = (x_nh.dims2()?, w_oh.dims2()?);
    let (x, w) = (View::new(x_nh)?, View::new(w_oh)?);
    let y = match n <= few_rows::MAX_ROWS {
        true => few_rows::product(&x, [n, h], &w),
        false => product(Mat::row_major(&x, n, h), Mat::row_major(&w, o, h).t(), Threads::Pool),
    };
    tensor_as(y, (n, o), dtype)
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
        let mut y = few_rows::product(&x, [n, h], &w);
        y.iter_mut().zip(View::new(residual_no)?.iter()).for_each(|(y, r)| *y += r);
        return tensor_as(y, (n, o), x_nh.dtype());
    }
    let mut y = View::new(residual_no)?.to_vec();
    let out = MatMut { data: &mut y, row_stride: o };
    gemm(Mat::row_major(&x, n, h), Mat::row_major(&w, o, h).t(), out, Write::Accumulate, Threads::Pool);
    tensor_as(y, (n, o), x_nh.dtype())
}

pub(super) fn backward_input(dy_no: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    let ((n, o), (_, h)) = (dy_no.dims2()?, w_oh.dims2()?);
    let (dy, w) = (View::new(dy_no)?, View::new(w_oh)?);
    let dx = product(Mat::row_major(&dy, n, o), Mat::row_major(&w, o, h), Threads::Pool);
    tensor_as(dx, (n, h), dy_no.dtype())
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
