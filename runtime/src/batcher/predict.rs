//! How long a step will take, learned from those that ran.
//!
//! A step's time is close to `a + b·tokens + c·attended`, where *attended* counts the positions that its tokens look at.
//! The three are fitted by least squares over past steps, each weighing a little less than the next. Predictions decide
//! how much of a prompt joins answers in progress, which deadlines can be met, and which guesses are worth verifying. They
//! never touch a token.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// How much less each older step weighs.
const FADE: f64 = 0.99;
/// Steps before predictions begin.
const ENOUGH: f64 = 8.0;
/// The units in which tokens and attended positions are alike in size.
const TOKENS: f64 = 64.0;
const ATTENDED: f64 = 16384.0;
/// Pulls coefficients that nothing is known of yet towards zero.
const RIDGE: f64 = 1e-6;
/// Steps of up to so many tokens are also remembered by their number, longer ones by the nearest multiple of it.
const COUNTED: usize = 96;
/// Times that are remembered of steps with one number of tokens.
const SAMPLES: usize = 5;
/// Steps after which they are forgotten.
const STALE: u64 = 512;

/// What a step's time depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Tokens in the step.
    pub tokens: usize,
    /// Sum over its tokens of the positions before each.
    pub attended: usize,
}

impl Load {
    /// The load of `tokens` tokens of a sequence from position `first` on.
    pub fn of(first: usize, tokens: usize) -> Load {
        Load { tokens, attended: tokens * first + tokens * tokens.saturating_sub(1) / 2 }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Load) -> Load {
        Load { tokens: self.tokens + other.tokens, attended: self.attended + other.attended }
    }

    /// The features in units that make them alike in size.
    fn features(self) -> [f64; 3] {
        [1.0, self.tokens as f64 / TOKENS, self.attended as f64 / ATTENDED]
    }
}

/// Predicts step times.
#[derive(Clone, Debug, Default)]
pub struct Predictor {
    products: [[f64; 3]; 3],
    times: [f64; 3],
    weight: f64,
    fit: [f64; 3],
    counted: BTreeMap<usize, Samples>, // by tokens
    steps: u64,
}

/// The last steps with one number of tokens.
#[derive(Clone, Debug, Default)]
struct Samples {
    last: VecDeque<(f64, usize)>, // seconds, attended
    step: u64,                    // when the last of them ran
}

impl Predictor {
    /// Learns from a step.
    pub fn learn(&mut self, load: Load, took: Duration) {
        let x = load.features();
        for (row, &xi) in x.iter().enumerate() {
            for (column, &xj) in x.iter().enumerate() {
                self.products[row][column] = self.products[row][column] * FADE + xi * xj;
            }
            self.times[row] = self.times[row] * FADE + xi * took.as_secs_f64();
        }
        self.weight = self.weight * FADE + 1.0;
        self.fit = solve(&self.products, &self.times);
        self.steps += 1;
        // What steps of many tokens take says more of those of a few that never ran than the slope of smaller ones does.
        let counted =
            if load.tokens <= COUNTED { load.tokens } else { (load.tokens + COUNTED / 2) / COUNTED * COUNTED };
        let samples = self.counted.entry(counted).or_default();
        if self.steps - samples.step > STALE {
            samples.last.clear();
        } else if samples.last.len() == SAMPLES {
            samples.last.pop_front();
        }
        samples.last.push_back((took.as_secs_f64(), load.attended));
        samples.step = self.steps;
    }

    /// The seconds of a step of few tokens, from steps with as many or nearly as many: kernels handle tokens in groups,
    /// which no line shows. `None` when none ran lately.
    pub fn small_step(&self, load: Load) -> Option<f64> {
        let known = |(&tokens, samples): (&usize, &Samples)| {
            (self.steps - samples.step <= STALE).then(|| (tokens as f64, self.seconds_at(samples, load.attended)))
        };
        let below = self.counted.range(..=load.tokens).rev().find_map(known);
        let above = self.counted.range(load.tokens..).find_map(known);
        let tokens = load.tokens as f64;
        let slope = self.token_seconds();
        match (below, above) {
            (Some((t0, s0)), Some((t1, s1))) if t1 > t0 => Some(s0 + (s1 - s0) * (tokens - t0) / (t1 - t0)),
            (Some((t, seconds)), _) => Some(seconds + slope * (tokens - t)),
            // What a much longer step takes says nothing of a short one.
            (None, Some((t, seconds))) if t <= 4.0 * tokens => Some((seconds - slope * (t - tokens)).max(0.0)),
            (None, _) => None,
        }
    }

    /// The median of some steps' seconds, as if each had attended to so many positions.
    fn seconds_at(&self, samples: &Samples, attended: usize) -> f64 {
        let slope = self.fit[2] / ATTENDED;
        let moved = samples.last.iter().map(|&(seconds, own)| seconds + slope * (attended as f64 - own as f64));
        let mut seconds: Vec<f64> = moved.collect();
        seconds.sort_by(f64::total_cmp);
        // Of two middle ones the lower: what disturbs a step makes it longer.
        seconds.get(seconds.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    }

    /// The seconds that a token more adds to a step of many.
    pub fn token_seconds(&self) -> f64 {
        self.fit[1] / TOKENS
    }

    /// How long a step will take; `None` before enough of them ran.
    pub fn step(&self, load: Load) -> Option<Duration> {
        let seconds: f64 = load.features().iter().zip(&self.fit).map(|(x, c)| x * c).sum();
        (self.weight >= ENOUGH).then(|| Duration::from_secs_f64(seconds.clamp(0.0, 3600.0)))
    }

    /// How many prompt tokens, from position `first` on, may join a step so that it takes at most `stretch` times as long
    /// as without them, and never fewer than `least`.
    pub fn room(&self, load: Load, first: usize, stretch: f64, least: usize, most: usize) -> usize {
        let Some(alone) = self.step(load) else { return least.min(most) };
        let (mut low, mut high) = (least.min(most), most);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let both = self.step(load.and(Load::of(first, middle))).unwrap_or(alone);
            if both.as_secs_f64() <= alone.as_secs_f64() * stretch {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }
}

/// Solves the normal equations by Gaussian elimination; none of the coefficients is negative.
fn solve(products: &[[f64; 3]; 3], times: &[f64; 3]) -> [f64; 3] {
    let mut a = [[0.0; 4]; 3];
    for row in 0..3 {
        a[row][..3].copy_from_slice(&products[row]);
        a[row][row] += RIDGE;
        a[row][3] = times[row];
    }
    for pivot in 0..3 {
        let source = a[pivot];
        if source[pivot] <= 0.0 {
            return [0.0; 3];
        }
        for row in a.iter_mut().skip(pivot + 1) {
            let factor = row[pivot] / source[pivot];
            row.iter_mut().zip(&source).for_each(|(value, s)| *value -= factor * s);
        }
    }
    let mut fit = [0.0; 3];
    for row in (0..3).rev() {
        let known: f64 = (row + 1..3).map(|column| a[row][column] * fit[column]).sum();
        fit[row] = ((a[row][3] - known) / a[row][row]).max(0.0);
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 2 ms a step, 0.1 ms a token and 1 ns for each position attended to.
    fn time(load: Load) -> Duration {
        Duration::from_nanos(2_000_000 + 100_000 * load.tokens as u64 + load.attended as u64)
    }

    #[test]
    fn a_linear_machine_is_learned() {
        let mut predictor = Predictor::default();
        assert_eq!(predictor.step(Load::of(0, 1)), None);
        for n in 0..60 {
            let load = Load::of(n * 37 % 900, 1 + n * 13 % 300);
            predictor.learn(load, time(load));
        }
        for load in [Load::of(0, 1), Load::of(500, 100), Load::of(100, 1).and(Load::of(0, 64))] {
            let (found, wanted) = (predictor.step(load).unwrap().as_secs_f64(), time(load).as_secs_f64());
            assert!((found / wanted - 1.0).abs() < 0.01, "{load:?}: {found} instead of {wanted}");
        }
    }

    #[test]
    fn room_is_what_the_stretch_allows() {
        let mut predictor = Predictor::default();
        let alone = Load::of(0, 10);
        assert_eq!(predictor.room(alone, 0, 2.0, 16, 512), 16, "nothing is known yet");
        for n in 0..60 {
            let load = Load::of(n * 37 % 900, 1 + n * 13 % 300);
            predictor.learn(load, time(load));
        }
        // Alone 3 ms, so 3 ms remain for about 30 tokens.
        assert!((29..=30).contains(&predictor.room(alone, 0, 2.0, 4, 512)));
        assert_eq!(predictor.room(alone, 0, 2.0, 64, 512), 64);
        assert_eq!(predictor.room(alone, 0, 2.0, 4, 8), 8);
    }

    #[test]
    fn small_steps_are_known_by_their_number_of_tokens() {
        // A machine that handles four tokens at a time.
        let time = |load: Load| Duration::from_micros(1000 + 500 * load.tokens.div_ceil(4) as u64);
        let mut predictor = Predictor::default();
        let load = |tokens| Load { tokens, attended: 100 };
        let seconds = |predictor: &Predictor, tokens| predictor.small_step(load(tokens)).unwrap();
        assert_eq!(predictor.small_step(load(1)), None);
        for tokens in [1, 4, 8, 1, 4, 8] {
            predictor.learn(load(tokens), time(load(tokens)));
        }
        for tokens in [1, 4, 8] {
            assert!((seconds(&predictor, tokens) - time(load(tokens)).as_secs_f64()).abs() < 1e-9, "{tokens}");
        }
        assert!((seconds(&predictor, 6) - 0.00175).abs() < 1e-5, "between two known numbers");
        assert!(seconds(&predictor, 12) >= seconds(&predictor, 8));
        // One step that was disturbed changes little.
        predictor.learn(load(4), Duration::from_millis(9));
        assert!((seconds(&predictor, 4) - 0.0015).abs() < 1e-4, "{}", seconds(&predictor, 4));
        // What has not been seen for long is forgotten.
        for _ in 0..5 {
            predictor.learn(load(8), Duration::from_millis(90));
        }
        for _ in 0..=STALE {
            predictor.learn(load(1), Duration::from_millis(1));
        }
        predictor.learn(load(8), Duration::from_millis(2));
        assert!((seconds(&predictor, 8) - 0.002).abs() < 1e-9, "{}", seconds(&predictor, 8));
    }

    #[test]
    fn a_long_step_says_what_steps_of_a_few_tokens_take() {
        // The second token is dear, those after it are cheap.
        let time = |tokens: usize| Duration::from_micros(if tokens == 1 { 1000 } else { 2000 + 100 * tokens as u64 });
        let mut predictor = Predictor::default();
        let load = |tokens| Load { tokens, attended: 0 };
        predictor.learn(load(200), time(200));
        assert_eq!(predictor.small_step(load(1)), None, "it says nothing of the shortest");
        for tokens in [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2] {
            predictor.learn(load(tokens), time(tokens));
        }
        let (found, wanted) = (predictor.small_step(load(5)).unwrap(), time(5).as_secs_f64());
        assert!((found / wanted - 1.0).abs() < 0.1, "{found} instead of {wanted}");
    }

    #[test]
    fn steps_of_one_kind_do_not_upset_the_fit() {
        let mut predictor = Predictor::default();
        for _ in 0..5000 {
            predictor.learn(Load::of(0, 1), Duration::from_millis(3));
        }
        let found = predictor.step(Load::of(0, 1)).unwrap().as_secs_f64();
        assert!((found - 0.003).abs() < 1e-5, "{found}");
    }
}
