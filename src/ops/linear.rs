//! Linear layers without bias: `y = x W^T`, `W` stored `[out, in]` as in HF checkpoints.

use candle_core::{CpuStorage, InplaceOp3, Layout, Tensor};

use super::gemm::{Mat, MatMut, Threads, Write, gemm, product};
use super::{View, few_rows, slice, slice_mut, tensor};
use crate::error::Result;

/// `x_nh: [N, H]`, `w_oh: [O, H]` -> `[N, O]`.
pub fn forward(x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    let ((n, h), (o, _)) = (x_nh.dims2()?, w_oh.dims2()?);
    let (x, w) = (View::new(x_nh)?, View::new(w_oh)?);
    if n <= few_rows::MAX_ROWS {
        return tensor(few_rows::product(&x, &w, [n, h, o]), (n, o));
    }
    let y = product(Mat::row_major(&x, n, h), Mat::row_major(&w, o, h).t(), Threads::Pool);
    tensor(y, (n, o))
}

/// `residual_no + x_nh W^T`, `[N, O]`: the residual sum costs no pass of its own.
pub fn forward_add(residual_no: &Tensor, x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    let ((n, h), (o, _)) = (x_nh.dims2()?, w_oh.dims2()?);
    let (x, w) = (View::new(x_nh)?, View::new(w_oh)?);
    if n <= few_rows::MAX_ROWS {
        let mut y = few_rows::product(&x, &w, [n, h, o]);
        y.iter_mut().zip(View::new(residual_no)?.iter()).for_each(|(y, r)| *y += r);
        return tensor(y, (n, o));
    }
    let mut y = View::new(residual_no)?.to_vec();
    let out = MatMut { data: &mut y, row_stride: o };
    gemm(Mat::row_major(&x, n, h), Mat::row_major(&w, o, h).t(), out, Write::Accumulate, Threads::Pool);
    tensor(y, (n, o))
}

/// Sum over `(dy_no, w_oh)` pairs of `dy W`: the input gradient of layers that read the same input. `[N, H]`
pub fn backward_input(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let Some(((first_dy, first_w), rest)) = pairs.split_first() else {
        return Err(crate::error::Error::Compute("backward_input needs at least one layer".into()));
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
    tensor(dx, (n, h))
}

/// `dw_oh += dy^T x`, in place, accumulating over micro-batches without an extra pass.
pub fn backward_weight(dw_oh: &Tensor, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
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
        let (dy, x) = (slice(dy, l_dy)?, slice(x, l_x)?);
        let out = MatMut { data: slice_mut(dw, l_dw)?, row_stride: h };
        gemm(Mat::row_major(dy, n, o).t(), Mat::row_major(x, n, h), out, Write::Accumulate, Threads::Pool);
        Ok(())
    }
}
