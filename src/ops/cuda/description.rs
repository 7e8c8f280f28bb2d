/// What `rlvr doctor` says about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    /// Major and minor: (8, 0) is A100, (9, 0) H100 and H200.
    pub compute_capability: (u32, u32),
    /// The newest CUDA version the installed driver serves, as `13.0`.
    pub driver: String,
    /// The CUDA version this program was built for.
    pub toolkit: String,
    pub cublas: String,
    /// Bytes. Free is what no program holds at this moment; memory kept by this program's pool is not free.
    pub memory_free: u64,
    pub memory_total: u64,
    pub multiprocessors: usize,
}
