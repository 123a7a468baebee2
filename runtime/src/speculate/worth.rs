//! Which guesses are worth their time.
//!
//! How often guesses of a class are right is counted for each answer and for all of them, also for guesses that were not
//! verified, where the step samples at their place anyhow. A guess counts only when all before it were right, so its chance is
//! the product of theirs and its own. Guesses are taken from the likeliest on, as many as give the most expected tokens
//! per predicted second.

/// How many classes of guesses there are.
pub const CLASSES: usize = 32;

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
