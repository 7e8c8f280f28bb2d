//! Launch code of both attentions against the CPU ops; `support/cuda.rs` says where it runs.

use candle_core::{DType, Device, Tensor};
use rlvr::ops::attention::cuda::DeviceLayout;
use rlvr::ops::attention::tiles::KeyTiles;
use rlvr::ops::attention::{self, AttentionLayout, Heads, Inputs, Upstream};
use rlvr::ops::decode_attention::cuda::DecodeLayout;
use rlvr::ops::decode_attention::{self, Cache, Readers, SharedPrefix};

use crate::support::attention::{heads, near, segments, tolerance};
use crate::support::cuda::{device, values};
use crate::support::shim::{Element, Random};

const CASES: [(Element, Heads); 4] = [
    (Element::F32, Heads { query: 6, key_value: 2, dim: 24 }),
    (Element::Bf16, Heads { query: 3, key_value: 1, dim: 40 }),
    (Element::Bf16, Heads { query: 6, key_value: 2, dim: 64 }),
    (Element::Bf16, Heads { query: 4, key_value: 1, dim: 128 }),
];

/// The same values on the CPU in f32 and on the device: there a view that starts one row into its storage.
fn pair(r: &Random, e: Element, device: &Device, shape: &[usize]) -> [Tensor; 2] {
    let rows = shape[0];
    let larger: Vec<usize> = [rows + 1].iter().chain(&shape[1..]).copied().collect();
    let all: Vec<f32> = r.values(e, larger.iter().product(), 2.).into_iter().map(|v| v as f32).collect();
    let host = Tensor::from_vec(all, larger, &Device::Cpu).unwrap();
    let there = host.to_dtype(e.dtype()).unwrap().to_device(device).unwrap();
    [host.narrow(0, 1, rows).unwrap(), there.narrow(0, 1, rows).unwrap()]
}

#[test]
fn attention_is_that_of_the_cpu() {
    let Some(device) = device() else { return };
    for (e, heads) in CASES {
        let r = Random::new();
        let layout = AttentionLayout::new(&segments(&[(35, &[5, 12]), (9, &[])])).unwrap();
        let on_device = DeviceLayout::new(&layout, heads, e.dtype(), &device).unwrap();
        let rows = |width| pair(&r, e, &device, &[layout.tokens(), width]);
        let q = rows(heads.query_width());
        let [k, v] = [(); 2].map(|()| rows(heads.key_value_width()));
        let dout = rows(heads.query_width());
        let inputs = |i: usize| Inputs { layout: &layout, heads, q: &q[i], k: &k[i], v: &v[i] };
        let (want_out, want_lse) = attention::forward(inputs(0)).unwrap();
        let (out, lse) = attention::cuda::forward(&on_device, inputs(1)).unwrap();
        let upstream = Upstream { out: &want_out, lse: &want_lse, dout: &dout[0] };
        let want = attention::backward(inputs(0), upstream).unwrap();
        let upstream = Upstream { out: &out, lse: &lse, dout: &dout[1] };
        let got = attention::cuda::backward(&on_device, inputs(1), upstream).unwrap();
        // With room for one key/value head at a time, and for none.
        let of_one_head = KeyTiles::new(&layout, heads.sharing(), 64, 4096 / heads.dim).strips << 11;
        for bytes in [of_one_head, of_one_head - 1] {
            let kept = DeviceLayout::keeping(bytes, &layout, heads, e.dtype(), &device).unwrap();
            let again = attention::cuda::backward(&kept, inputs(1), upstream).unwrap();
            for (what, got, again, same) in [
                // Worked out again, scores are of another product.
                ("dq", &got.dq, &again.dq, bytes == of_one_head),
                ("dk", &got.dk, &again.dk, true),
                ("dv", &got.dv, &again.dv, true),
            ] {
                let allowed = if same { [0.; 2] } else { tolerance(e) };
                near(
                    &format!("{e:?} {heads:?} {what}, {bytes} bytes"),
                    &values(again),
                    &values(got),
                    allowed,
                );
            }
        }
        for (what, got, want) in [
            ("out", &out, &want_out),
            ("lse", &lse, &want_lse),
            ("dq", &got.dq, &want.dq),
            ("dk", &got.dk, &want.dk),
            ("dv", &got.dv, &want.dv),
        ] {
            assert_eq!(got.dims(), want.dims(), "{what}");
            // The CPU's own rounding, on top.
            let allowed = tolerance(e).map(|t| t + 4e-6);
            near(&format!("{e:?} {heads:?} {what}"), &values(got), &values(want), allowed);
        }
    }
}

#[test]
fn decode_attention_is_that_of_the_cpu() {
    let Some(device) = device() else { return };
    for (e, heads) in CASES {
        let r = Random::new();
        let prefixes =
            [SharedPrefix { start: 9, len: 150, rows: 5 }, SharedPrefix { start: 0, len: 7, rows: 2 }];
        let (sequences, len) = ([6, 5, 0, 2, 3, 7, 1], 3);
        let on_device = DecodeLayout::new(heads, e.dtype(), &prefixes, &sequences, &device).unwrap();
        let width = heads.key_value_width();
        let q = pair(&r, e, &device, &[7, heads.query_width()]);
        let [prefix_k, prefix_v] = [(); 2].map(|()| pair(&r, e, &device, &[160, width]));
        let [own_k, own_v] = [(); 2].map(|()| pair(&r, e, &device, &[8, 4, width]));
        let cache = |i: usize| Cache {
            prefix_k: &prefix_k[i],
            prefix_v: &prefix_v[i],
            own_k: &own_k[i],
            own_v: &own_v[i],
        };
        let readers = Readers::new(prefixes.to_vec(), sequences.to_vec());
        let (want, want_lse) = decode_attention::forward(heads, &q[0], cache(0), &readers, len).unwrap();
        let (got, lse) = decode_attention::cuda::forward(&on_device, &q[1], cache(1), len).unwrap();
        let allowed = tolerance(e).map(|t| t + 4e-6);
        near(&format!("{e:?} {heads:?}"), &values(&got), &values(&want), allowed);
        near(&format!("lse, {e:?} {heads:?}"), &values(&lse), &values(&want_lse), allowed);
    }
}

#[test]
fn what_the_kernels_cannot_take_is_refused() {
    let Some(device) = device() else { return };
    let layout = AttentionLayout::new(&segments(&[(4, &[])])).unwrap();
    let made = |query, key_value, dim, dtype| {
        DeviceLayout::new(&layout, heads(query, key_value, dim), dtype, &device).map(|_| ())
    };
    for (result, want) in [
        (made(2, 1, 12, DType::F32), "multiple of 8"),
        (made(2, 1, 264, DType::BF16), "up to 256"),
        (made(2, 1, 64, DType::F16), "f32 or bf16"),
        (made(3, 2, 64, DType::BF16), "cannot share"),
    ] {
        let said = result.unwrap_err().to_string();
        assert!(said.contains(want), "{said}");
    }
    let on_device = DeviceLayout::new(&layout, heads(2, 1, 64), DType::BF16, &device).unwrap();
    let r = Random::new();
    let [_, wrong] = pair(&r, Element::F32, &device, &[4, 128]);
    let inputs = Inputs { layout: &layout, heads: heads(2, 1, 64), q: &wrong, k: &wrong, v: &wrong };
    let said = attention::cuda::forward(&on_device, inputs).unwrap_err().to_string();
    assert!(said.contains("q must be BF16 [4, 128]"), "{said}");
}
