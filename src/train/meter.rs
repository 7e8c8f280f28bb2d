//! The hours of a run and what they cost, over all its resumes; the bounds of both.

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::observe::Metrics;

/// Counts from the start of this process's part of a run.
pub struct Meter {
    /// Seconds of the parts before, as the last checkpoint has them.
    before: f64,
    /// Seconds of this part.
    clock: Box<dyn Fn() -> f64>,
    config: RunConfig,
    /// Seconds of this part at the stage's first step here, and the steps done then.
    stage: (f64, u64),
}

impl Meter {
    /// `clock` gives the seconds of this process's part.
    pub fn new(config: &RunConfig, before: f64, clock: impl Fn() -> f64 + 'static) -> Self {
        Self { before, clock: Box::new(clock), config: config.clone(), stage: (0.0, 0) }
    }

    /// Of the whole run.
    pub fn seconds(&self) -> f64 {
        self.before + (self.clock)()
    }

    fn hours(&self) -> f64 {
        self.seconds() / 3600.0
    }

    /// Steps begin, `done` having been made.
    pub fn enter_stage(&mut self, done: u64) {
        self.stage = ((self.clock)(), done);
    }

    /// After `step` of a stage's `steps`: `hours` where the time has a bound or a price; `cost`, and `cost_to_come` of the rest of the
    /// stage at its pace so far, where it has a price.
    pub fn metrics(&self, step: u64, steps: u64) -> Metrics {
        let RunConfig { price_per_hour, max_hours, .. } = self.config;
        let (mut metrics, hours) = (Metrics::default(), self.hours());
        if price_per_hour.or(max_hours).is_some() {
            metrics.insert("hours", hours);
        }
        if let Some(price) = price_per_hour {
            let (since, done) = self.stage;
            let each = ((self.clock)() - since) / step.saturating_sub(done).max(1) as f64;
            metrics.insert("cost", hours * price);
            metrics.insert("cost_to_come", each * steps.saturating_sub(step) as f64 / 3600.0 * price);
        }
        metrics
    }

    /// # Errors
    /// A bound was reached before: going on would be stopping again.
    pub fn check(&self) -> Result<()> {
        let fix = "Raise it in the run's config.resolved.toml to go on";
        self.reached().map_or(Ok(()), |text| Err(Error::input("run", text, fix)))
    }

    /// The bound that is reached, and how.
    pub fn reached(&self) -> Option<String> {
        let RunConfig { price_per_hour, max_cost, max_hours, .. } = self.config;
        let hours = self.hours();
        if let Some(most) = max_hours.filter(|most| hours >= *most) {
            return Some(format!("run.max_hours = {most} is reached: the run has taken {hours:.2} h"));
        }
        let cost = hours * price_per_hour?;
        let most = max_cost.filter(|most| cost >= *most)?;
        Some(format!("run.max_cost = {most} is reached: the run has cost {cost:.2}"))
    }

    /// What the run took, for its end; `None` without a price.
    pub fn summary(&self) -> Option<String> {
        let (price, hours) = (self.config.price_per_hour?, self.hours());
        Some(format!("the run took {hours:.2} h, which cost {:.2} at {price} an hour", hours * price))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A meter at 2.50 an hour after `before` hours of earlier parts, and the hand of its clock in seconds.
    fn meter(config: RunConfig, before: f64) -> (Meter, Rc<Cell<f64>>) {
        let hand = Rc::new(Cell::new(0.0));
        let clock = Rc::clone(&hand);
        (Meter::new(&config, 3600.0 * before, move || clock.get()), hand)
    }

    fn priced() -> RunConfig {
        RunConfig { price_per_hour: Some(2.5), ..RunConfig::default() }
    }

    #[test]
    fn parts_add_up_and_the_rest_of_a_stage_goes_on_as_it_went() {
        let (mut meter, hand) = meter(priced(), 2.0);
        // Half an hour of loading and evaluating, then 10 steps of 3 minutes after 5 that were made before.
        hand.set(1800.0);
        meter.enter_stage(5);
        hand.set(3600.0);
        let metrics = meter.metrics(15, 25);
        assert_eq!((metrics.get("hours"), metrics.get("cost")), (Some(3.0), Some(7.5)));
        assert_eq!(metrics.get("cost_to_come"), Some(10.0 * 180.0 / 3600.0 * 2.5));
        assert_eq!(meter.metrics(25, 25).get("cost_to_come"), Some(0.0));
        assert_eq!(meter.summary().unwrap(), "the run took 3.00 h, which cost 7.50 at 2.5 an hour");
        assert_eq!(meter.seconds(), 10_800.0);
    }

    #[test]
    fn a_bound_is_reached_by_all_parts_together() {
        for (config, at, says) in [
            (
                RunConfig { max_cost: Some(5.0), ..priced() },
                3600.0,
                "run.max_cost = 5 is reached: the run has cost 5.00",
            ),
            (
                RunConfig { max_hours: Some(2.5), ..RunConfig::default() },
                5400.0,
                "run.max_hours = 2.5 is reached: the run has taken 2.50 h",
            ),
        ] {
            let (meter, hand) = meter(config, 1.0);
            hand.set(at - 1.0);
            assert_eq!(meter.reached(), None);
            assert!(meter.check().is_ok());
            hand.set(at);
            assert_eq!(meter.reached().unwrap(), says);
            let error = meter.check().unwrap_err();
            assert!(
                error.is_input() && error.to_string().starts_with(&format!("run: {says}. Raise it")),
                "{error}"
            );
        }
    }

    #[test]
    fn without_price_and_bound_nothing_is_said() {
        let (meter, hand) = meter(RunConfig::default(), 1.0);
        hand.set(1e9);
        assert_eq!((meter.metrics(1, 2), meter.reached(), meter.summary()), (Metrics::default(), None, None));
    }
}
