//! Scoring: how likely a given text is under the model, token by token, for perplexity and for tests.

use super::Engine;
use crate::{
    device::{Pick, Row, RowOutput, StepToken},
    error::{Error, Result},
};

impl Engine {
    /// The natural log-probability of each token but the first, given those before it: `tokens.len() - 1` numbers.
    /// The engine must be idle.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut logprobs = Vec::with_capacity(tokens.len().saturating_sub(1));
        let inputs = tokens.len().saturating_sub(1);
        self.evaluate(tokens, inputs, false, |row| logprobs.push(row.logprob))?;
        Ok(logprobs)
    }

    /// The logits after each token, `[tokens, vocabulary]`. The engine must be idle.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let mut logits = Vec::with_capacity(tokens.len());
        self.evaluate(tokens, tokens.len(), true, |row| logits.push(std::mem::take(&mut row.logits)))?;
        Ok(logits)
    }

    /// Runs the first `inputs` of `tokens` as a fresh sequence, with a row for each. The row's given token is the one that
    /// follows; after the last it is token 0.
    fn evaluate(
        &mut self,
        tokens: &[u32],
        inputs: usize,
        logits: bool,
        mut take: impl FnMut(&mut RowOutput),
    ) -> Result<()> {
        if self.batcher.unfinished() > 0 {
            return Err(Error::Busy(self.batcher.unfinished()));
        }
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.batcher.length_limit(inputs, Some(0))?;
        let chunk = self.batcher.prefill_chunk().min(self.limits().max.rows as usize).max(1);
        let groups = self.limits().groups.len();
        let mut table = self.batcher.cache().table();
        let mut outcome = Ok(());
        for start in (0..inputs).step_by(chunk) {
            let end = (start + chunk).min(inputs);
            self.step.clear(groups);
            self.batcher.cache().slide(&mut table, start);
            // The cache is empty and large enough, so this grants the pages.
            self.batcher.cache().grow(&mut table, end, &mut self.step.copies);
            let known = tokens[start..end].iter().map(|&token| StepToken::Known(token));
            self.step.push_sequence(known, start as u32, table.groups());
            for index in start..end {
                let next = tokens.get(index + 1).copied().unwrap_or(0);
                self.step.rows.push(Row {
                    token: (index - start) as u32,
                    pick: Pick::Given(next),
                    logits,
                    ..Row::default()
                });
            }
            outcome = self.run();
            if outcome.is_err() {
                break;
            }
            if let Some(row) = self.output.rows.iter().position(|row| row.is_broken) {
                outcome = Err(Error::NotFinite { row });
                break;
            }
            self.output.rows.iter_mut().for_each(&mut take);
        }
        self.batcher.cache().release(&mut table);
        outcome
    }
}
