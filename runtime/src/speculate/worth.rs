//! Which guesses are worth their time.
//!
//! How often guesses of a class are right is counted for each answer and for all of them, also for guesses that were not
//! verified, where the step samples at their place anyhow. A guess counts only when all before it were right, so its chance is
//! the product of theirs and its own. Guesses are taken from the likeliest on, as many as give the most expected tokens
//! per predicted second.

use super::{Guess, Kind};

/// How many classes of guesses there are.
pub const CLASSES: usize = RIVAL + 3 * RIVALS;

/// The first class of a draft model's guesses.
pub const DRAFT: usize = 17;
/// The first class of guesses of the model itself without some layers.
pub const OWN: usize = DRAFT + SURENESS + 1;
/// The first class of guesses that stand beside another one at the same place, of the first kind of drafters; those of the
/// next kinds follow. How often they are right is counted where the other one was wrong.
pub const RIVAL: usize = OWN + SURENESS + 1;
/// Their classes of one kind, by how likely they seem.
pub const RIVALS: usize = 4;
/// Classes of a model's guesses, by how sure it was of them. The one behind them stands for all of its guesses together.
const SURENESS: usize = 6;
/// How likely a model's guess is taken to be right before one was verified.
const UNKNOWN: f32 = 0.7;

/// The class of a guess that a model sampled with this probability.
pub fn class_of_model(first: usize, probability: f32) -> usize {
    first + ((probability * SURENESS as f32) as usize).min(SURENESS - 1)
}

/// The class of a guess beside others at its place that seems so likely, in 0 ..= 1, where those before it are wrong.
pub fn class_of_rival(kind: Kind, likely: f32) -> usize {
    RIVAL + kind as usize * RIVALS + ((likely * RIVALS as f32) as usize).min(RIVALS - 1)
}

/// The class that stands for all guesses of the model that a guess of this class comes from.
fn of_same_model(class: usize) -> Option<usize> {
    (DRAFT..RIVAL).contains(&class).then(|| class + SURENESS - (class - DRAFT) % (SURENESS + 1))
}

/// How much less an older guess weighs.
const FADE: f32 = 0.94;
/// Guesses that an estimate from elsewhere counts for.
const PRIOR: f32 = 3.0;
/// By what factor guesses must promise more than none: predictions err by a little.
const MARGIN: f64 = 1.03;
/// What an expected token of a guess counts for beside other answers: it helps one of them, and its time is everybody's.
const SHARED: f64 = 0.75;

/// How many guesses of each class were right.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    tried: [f32; CLASSES],
    right: [f32; CLASSES],
}

impl Default for Record {
    fn default() -> Record {
        Record { tried: [0.0; CLASSES], right: [0.0; CLASSES] }
    }
}

impl Record {
    /// Counts a guess whose turn came.
    pub fn learn(&mut self, class: usize, is_right: bool) {
        for class in std::iter::once(class).chain(of_same_model(class)) {
            self.count(class, is_right);
        }
    }

    fn count(&mut self, class: usize, is_right: bool) {
        let (Some(tried), Some(right)) = (self.tried.get_mut(class), self.right.get_mut(class)) else { return };
        *tried = *tried * FADE + 1.0;
        *right = *right * FADE + f32::from(u8::from(is_right));
    }

    /// How likely the next guess of a class is right; `otherwise` where nothing is known.
    pub fn chance(&self, class: usize, otherwise: f32) -> f32 {
        let (tried, right) = self.tried.get(class).zip(self.right.get(class)).unwrap_or((&0.0, &0.0));
        (right + PRIOR * otherwise) / (tried + PRIOR)
    }
}

/// How often guesses were right: those of an answer, and those of all.
#[derive(Clone, Copy, Debug)]
pub struct Odds<'a> {
    /// The answer's own.
    pub own: &'a Record,
    /// Of all answers.
    pub all: &'a Record,
}

impl Odds<'_> {
    /// How likely a guess is right when those before it are.
    pub fn of(&self, guess: &Guess) -> f64 {
        f64::from(self.own.chance(guess.class, self.all.chance(guess.class, guess.chance)))
    }

    /// How likely the next guess is right of the model that guesses of this class come from, before it is made.
    pub fn of_model(&self, class: usize) -> f64 {
        let class = of_same_model(class).unwrap_or(class);
        f64::from(self.own.chance(class, self.all.chance(class, UNKNOWN)))
    }
}

/// How far a model guesses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// The most guesses for an answer.
    pub depth: usize,
    /// The least chance that a guess is right, with all before it, to be worth its time.
    pub least: f64,
    /// Seconds that it saves for each token of an answer.
    pub saved: f64,
}

/// How far a model that is right with this chance should guess for each of `count` answers that share its steps, at most
/// `most` tokens. A step of its own takes `each` seconds, `time` predicts the step that verifies so many for each answer.
pub fn best_reach(count: usize, chance: f64, most: usize, each: f64, time: impl Fn(usize) -> Option<f64>) -> Reach {
    let mut best = Reach { depth: 0, least: 1.0, saved: 0.0 };
    let Some(alone) = time(0).filter(|seconds| *seconds > 0.0) else { return best };
    let weight = if count > 1 { SHARED } else { 1.0 };
    let (mut tokens, mut right, mut best_rate) = (1.0, 1.0, MARGIN / alone);
    for depth in 1..=most {
        right *= chance;
        tokens += right * weight;
        let Some(step) = time(depth) else { continue };
        let seconds = step + each * depth as f64;
        if tokens / seconds > best_rate {
            best_rate = tokens / seconds;
            // What one more guess of each answer takes, in the time of a token.
            let least = (each + (step - alone) / depth as f64) * best_rate / weight;
            best = Reach { depth, least: least.min(1.0), saved: alone - seconds / tokens };
        }
    }
    best
}

/// How many guesses to add to a step that gives `certain` tokens without any. `chances` are the guesses' in the order in
/// which they would be added, `time` predicts the seconds of the step with so many of them.
pub fn best_count(certain: usize, chances: &[f64], time: impl Fn(usize) -> Option<f64>) -> usize {
    let mut expected = certain as f64;
    let Some(alone) = time(0).filter(|seconds| *seconds > 0.0) else { return 0 };
    let mut best = (expected / alone * MARGIN, 0);
    let weight = if certain > 1 { SHARED } else { 1.0 };
    for (index, chance) in chances.iter().enumerate() {
        expected += chance * weight;
        let Some(seconds) = time(index + 1).filter(|seconds| *seconds > 0.0) else { continue };
        if expected / seconds > best.0 {
            best = (expected / seconds, index + 1);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_guesses_are_counted_by_sureness_and_together() {
        assert_eq!([0.0, 0.2, 0.99, 1.0].map(|p| class_of_model(DRAFT, p)), [17, 18, 22, 22]);
        assert_eq!([16, 17, 22, 24, 29].map(of_same_model), [None, Some(23), Some(23), Some(30), Some(30)]);
        assert_eq!([0.0, 0.3, 1.0].map(|p| class_of_rival(Kind::Draft, p)), [35, 36, 38]);
        assert_eq!([31, 35, 42].map(of_same_model), [None; 3]);
        assert_eq!([16, 17, 24, 34, 35, 42].map(Kind::of_class).map(|kind| kind as usize), [0, 1, 2, 0, 1, 2]);
        let (mut own, all) = (Record::default(), Record::default());
        let of_model = |own: &Record| Odds { own, all: &all }.of_model(DRAFT + 2);
        assert!((of_model(&own) - f64::from(UNKNOWN)).abs() < 1e-6);
        (0..60).for_each(|_| own.learn(DRAFT, true));
        assert!(of_model(&own) > 0.9, "{}", of_model(&own));
        let unsure = Guess { token: 0, class: DRAFT + 1, chance: 0.4 };
        assert!((Odds { own: &own, all: &all }.of(&unsure) - 0.4).abs() < 1e-6, "classes are counted apart");
    }

    #[test]
    fn a_model_guesses_as_far_as_that_gives_more_tokens_a_second() {
        // A step of 10 ms and 1 ms more for each guess, of a model that takes 3 ms for each.
        let reach = |count, chance, each| best_reach(count, chance, 8, each, |n| Some(0.010 + 0.001 * n as f64));
        // By hand at 0.8: 1.8 tokens in 14 ms, 2.44 in 18, 2.95 in 22, 3.36 in 26: the second gives most.
        assert_eq!(reach(1, 0.8, 0.003).depth, 2);
        assert!((reach(1, 0.8, 0.003).least - 0.004 * 2.44 / 0.018).abs() < 1e-9);
        assert!((reach(1, 0.8, 0.003).saved - (0.010 - 0.018 / 2.44)).abs() < 1e-9);
        assert_eq!(reach(1, 0.3, 0.003).depth, 0);
        assert_eq!(reach(1, 0.95, 0.0).depth, 8);
        assert_eq!(reach(4, 0.5, 0.003).depth, 0, "beside others a guess must earn more");
        assert_eq!(best_reach(1, 1.0, 8, 0.0, |_| None).depth, 0, "no time is known");
    }

    #[test]
    fn what_was_counted_takes_the_place_of_an_estimate() {
        let mut record = Record::default();
        assert!((record.chance(3, 0.7) - 0.7).abs() < 1e-6);
        for n in 0..200 {
            record.learn(3, n % 4 > 0);
        }
        // Within two or three of the seventeen that weigh.
        assert!((record.chance(3, 0.1) - 0.75).abs() < 0.16, "{}", record.chance(3, 0.1));
        assert!((record.chance(4, 0.1) - 0.1).abs() < 1e-6, "classes are counted apart");
        for _ in 0..200 {
            record.learn(3, false);
        }
        assert!(record.chance(3, 0.9) < 0.2, "what was long ago weighs little");
        record.learn(CLASSES, true);
        assert!((record.chance(CLASSES, 0.4) - 0.4).abs() < 1e-6);
    }

    /// Of a step that takes 10 ms and so much more for each guess, how many guesses are worth it.
    #[track_caller]
    fn check(certain: usize, chances: &[f64], each: f64, expected: usize) {
        assert_eq!(best_count(certain, chances, |n| Some(0.010 + each * n as f64)), expected);
    }

    #[test]
    fn guesses_are_taken_while_they_give_more_tokens_a_second() {
        let likely = [0.9, 0.81, 0.73, 0.66, 0.6];
        check(1, &likely, 0.0001, 5);
        // A guess for half a step's time pays at first: 1.9 tokens in 15 ms, 2.71 in 20 ms, 3.44 in 25 ms, but 4.1 in 30 ms.
        check(1, &likely, 0.005, 3);
        check(1, &likely, 0.010, 0);
        check(1, &[0.02; 5], 0.001, 0);
        check(1, &[], 0.001, 0);
        // The more answers there are, the more tokens the time of a guess costs.
        check(1, &[0.3], 0.002, 1);
        check(16, &[0.3], 0.002, 0);
        // Beside another answer a guess must earn a third more than its time.
        check(2, &[0.3], 0.001, 0);
        check(2, &[0.5], 0.001, 1);
    }

    #[test]
    fn nothing_is_guessed_before_times_are_known() {
        assert_eq!(best_count(1, &[1.0; 4], |_| None), 0);
        assert_eq!(best_count(1, &[1.0; 4], |n| (n != 1).then_some(0.01)), 4);
    }

    #[test]
    fn a_dear_group_of_tokens_may_be_worth_filling() {
        // Kernels that handle four tokens at a time: the second costs as much as all four.
        let time = |n: usize| Some(0.010 + 0.004 * (n as f64 / 4.0).ceil());
        assert_eq!(best_count(1, &[0.3, 0.25, 0.22, 0.2, 0.05], time), 4);
        assert_eq!(best_count(1, &[0.3], time), 0);
    }
}
