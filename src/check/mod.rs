//! Every op against an independent answer on fresh random inputs: what `rlvr doctor` runs.
//!
//! On the CPU the answer is a naive loop in f64. On a CUDA device it is the CPU's op in f32, on inputs rounded to
//! the device's dtype first, so that the difference is the kernel's alone.

mod attention;
mod compare;
mod passes;
mod place;
mod products;
mod reference;
mod rows;
mod sampling;

use candle_core::{DType, Device};

use self::compare::compare;
use self::place::{Draw, Place};
use crate::error::Result;

pub use self::compare::{Difference, rounding};

/// What an op wrote, or what it should have written.
struct Output {
    /// The pass, and which of its results.
    part: &'static str,
    values: Vec<f64>,
}

fn output(part: &'static str, values: Vec<f64>) -> Output {
    Output { part, values }
}

/// Where an op has code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    Everywhere,
    /// What other ops on the CPU are built from.
    CpuOnly,
}

type Body = Box<dyn Fn(&Place) -> Result<Vec<Output>>>;

/// One op on one set of inputs.
struct Trial {
    /// The folder in `src/ops/`, a file of `src/ops/cpu/`, or one function of an op.
    op: &'static str,
    /// What sets this trial apart from the op's others.
    shape: String,
    runs: Runs,
    tolerance: Tolerance,
    run: Body,
    reference: Box<dyn Fn() -> Vec<Output>>,
}

impl Trial {
    /// `run` calls the op on `inputs` at a place, `reference` does without it.
    fn new<I: 'static>(
        (op, shape, tolerance): (&'static str, String, Tolerance),
        inputs: I,
        run: impl Fn(&I, &Place) -> Result<Vec<Output>> + 'static,
        reference: impl Fn(&I) -> Vec<Output> + 'static,
    ) -> Self {
        let shared = std::rc::Rc::new(inputs);
        let inputs = shared.clone();
        Self {
            op,
            shape,
            runs: Runs::Everywhere,
            tolerance,
            run: Box::new(move |place| run(&shared, place)),
            reference: Box::new(move || reference(&inputs)),
        }
    }

    fn cpu_only(self) -> Self {
        Self { runs: Runs::CpuOnly, ..self }
    }
}

/// Largest [`Difference`] that rounding explains: of f32 sums, and of results kept in bf16.
#[derive(Clone, Copy)]
struct Tolerance {
    f32: f64,
    roundings: f64,
}

impl Tolerance {
    const ROUNDED: Self = Self { f32: 1e-5, roundings: 1.0 };
    /// Results of results that were rounded themselves.
    const CHAINED: Self = Self { f32: 2e-5, roundings: 2.5 };
    /// A value kept in 8 bits: half a cell of the code, over a block.
    const EIGHT_BITS: Self = Self { f32: 0.02, roundings: 0.0 };
    const EXACT: Self = Self { f32: 0.0, roundings: 0.0 };

    fn of(self, dtype: DType) -> f64 {
        self.f32 + self.roundings * rounding(dtype, 1.0)
    }
}

/// One result of one op, compared.
#[derive(Clone, Debug)]
pub struct Finding {
    pub op: &'static str,
    pub part: &'static str,
    pub shape: String,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// `f32` or `bf16`.
    pub dtype: &'static str,
    pub tolerance: f64,
    /// Or why there was nothing to measure: the op failed, or a value is not finite.
    pub difference: std::result::Result<Difference, String>,
}

impl Finding {
    /// Nothing that is not a number below the tolerance passes.
    pub fn passed(&self) -> bool {
        self.difference.as_ref().is_ok_and(|d| d.within(self.tolerance))
    }
}

/// The trial of each result that should worry most: failures first, then by the share of the tolerance used.
pub fn worst(findings: &[Finding]) -> Vec<&Finding> {
    let same =
        |a: &Finding, b: &Finding| (a.device, a.dtype, a.op, a.part) == (b.device, b.dtype, b.op, b.part);
    let mut worst: Vec<&Finding> = Vec::new();
    for finding in findings {
        match worst.iter_mut().find(|known| same(known, finding)) {
            Some(known) if badness(finding) > badness(known) => *known = finding,
            Some(_) => {}
            None => worst.push(finding),
        }
    }
    worst
}

fn badness(finding: &Finding) -> f64 {
    match &finding.difference {
        Ok(d) if finding.passed() => d.norm.max(d.max) / finding.tolerance.max(f64::MIN_POSITIVE),
        Ok(_) => f64::MAX,
        Err(_) => f64::INFINITY,
    }
}

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    pub seed: u64,
    /// f32 or bf16.
    pub dtype: DType,
    /// Ops by name; empty: all.
    pub only: &'a [String],
}

/// Ops on the CPU, against f64 loops. `tell` hears of each finding as it is made.
pub fn on_cpu(round: Round, tell: &mut dyn FnMut(&Finding)) -> Vec<Finding> {
    let place = Place { device: Device::Cpu, dtype: round.dtype };
    round.findings(tell, |trial| compare_all(trial, &place, Ok((trial.reference)()), (trial.run)(&place)))
}

/// Ops that have kernels, on a CUDA device, against the CPU's ops. `tell` as for [`on_cpu`].
pub fn on_cuda(round: Round, device: &Device, tell: &mut dyn FnMut(&Finding)) -> Vec<Finding> {
    let place = Place { device: device.clone(), dtype: round.dtype };
    let cpu = Place { device: Device::Cpu, dtype: DType::F32 };
    round.findings(tell, |trial| match trial.runs {
        Runs::Everywhere => compare_all(trial, &place, (trial.run)(&cpu), (trial.run)(&place)),
        Runs::CpuOnly => Vec::new(),
    })
}

/// The names of all ops, in the order in which they are checked.
pub fn ops() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for trial in trials(0, DType::F32) {
        if !names.contains(&trial.op) {
            names.push(trial.op);
        }
    }
    names
}

impl Round<'_> {
    fn findings(
        self,
        tell: &mut dyn FnMut(&Finding),
        check: impl Fn(&Trial) -> Vec<Finding>,
    ) -> Vec<Finding> {
        let mut all = Vec::new();
        let wanted = |trial: &&Trial| self.only.is_empty() || self.only.iter().any(|op| op == trial.op);
        for trial in trials(self.seed, self.dtype).iter().filter(wanted) {
            let found = check(trial);
            found.iter().for_each(&mut *tell);
            all.extend(found);
        }
        all
    }
}

/// Every trial; its inputs can be written in `dtype` without loss.
fn trials(seed: u64, dtype: DType) -> Vec<Trial> {
    let draw = Draw::new(seed, dtype);
    let rooms = [products::trials, rows::trials, attention::trials, passes::trials, sampling::trials];
    rooms.iter().flat_map(|room| room(&draw)).collect()
}

fn compare_all(
    trial: &Trial,
    place: &Place,
    want: Result<Vec<Output>>,
    got: Result<Vec<Output>>,
) -> Vec<Finding> {
    let finding = |part, difference| Finding {
        op: trial.op,
        part,
        shape: trial.shape.clone(),
        device: if place.device.is_cuda() { "cuda" } else { "cpu" },
        dtype: if place.dtype == DType::BF16 { "bf16" } else { "f32" },
        tolerance: trial.tolerance.of(place.dtype),
        difference,
    };
    match (want, got) {
        (Ok(want), Ok(got)) if want.len() == got.len() => {
            let pairs = want.iter().zip(&got);
            pairs.map(|(want, got)| finding(want.part, compare(&got.values, &want.values))).collect()
        }
        (Ok(want), Ok(got)) => {
            vec![finding("all", Err(format!("{} results instead of {}", got.len(), want.len())))]
        }
        (Err(error), _) => vec![finding("all", Err(format!("on the CPU: {error}")))],
        (_, Err(error)) => vec![finding("all", Err(error.to_string()))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(run: impl Fn(&Place) -> Result<Vec<Output>> + 'static) -> Vec<Finding> {
        let trial = Trial {
            op: "double",
            shape: String::new(),
            runs: Runs::Everywhere,
            tolerance: Tolerance::ROUNDED,
            run: Box::new(run),
            reference: Box::new(|| vec![output("y", vec![2.0, 4.0])]),
        };
        let place = Place { device: Device::Cpu, dtype: DType::F32 };
        compare_all(&trial, &place, Ok((trial.reference)()), (trial.run)(&place))
    }

    #[test]
    fn a_broken_op_fails() {
        assert!(trial(|_| Ok(vec![output("y", vec![2.0, 4.0])]))[0].passed());
        for (broken, why) in
            [(vec![2.0, 4.1], ""), (vec![2.0, f64::NAN], "not finite"), (vec![2.0], "values")]
        {
            let values = broken.clone();
            let findings = trial(move |_| Ok(vec![output("y", values.clone())]));
            assert!(!findings[0].passed(), "{broken:?}");
            assert!(findings[0].difference.as_ref().err().is_none_or(|e| e.contains(why)), "{findings:?}");
        }
        let findings = trial(|_| Ok(Vec::new()));
        assert!(!findings[0].passed(), "an op that returns nothing: {findings:?}");
        let findings = trial(|_| Err(crate::error::Error::Compute("no kernel".into())));
        assert!(!findings[0].passed());
        assert!(findings[0].difference.as_ref().unwrap_err().contains("no kernel"));
    }

    #[test]
    fn an_op_without_code_for_a_dtype_fails_in_it() {
        // The device's path with the CPU in its place: it is the same as itself in f32, and has no f16.
        let round = Round { seed: 3, dtype: DType::F32, only: &[] };
        let mut told = 0;
        let findings = on_cuda(round, &Device::Cpu, &mut |_| told += 1);
        assert_eq!(told, findings.len());
        assert!(findings.len() > 30 && findings.iter().all(Finding::passed), "{findings:?}");
        let findings = on_cuda(Round { dtype: DType::F16, ..round }, &Device::Cpu, &mut |_| ());
        let passed: Vec<_> = findings.iter().filter(|f| f.passed()).map(|f| (f.op, f.part)).collect();
        // What takes f32 whatever the dtype of weights and activations.
        assert!(passed.iter().all(|(op, _)| *op == "sum_squares"), "{findings:?}");
        assert!(passed.len() < findings.len() / 2, "{findings:?}");
    }

    #[test]
    fn a_memory_that_no_one_wrote_is_poison() {
        // An op that hands back what it was given to overwrite.
        let findings = trial(|place| Ok(vec![output("y", place.read(&place.poison(2)?)?)]));
        assert!(!findings[0].passed(), "{findings:?}");
    }
}
