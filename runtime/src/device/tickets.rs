//! The tickets of a device: which steps are in flight, and which of them a step may take tokens from.

use super::{IN_FLIGHT, Step, StepToken, Ticket};
use crate::error::{Error, Result};

/// Tickets that a device has issued.
#[derive(Debug, Default)]
pub struct Tickets {
    next: u64,
    waiting: [bool; IN_FLIGHT], // by ticket mod IN_FLIGHT: whether it is still to be collected
    rows: [usize; IN_FLIGHT],   // likewise: its number of rows
}

impl Tickets {
    /// The ticket that is issued next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Checks that one more step may be in flight, and that tokens which other steps sample are known or will be when it
    /// runs.
    pub fn admit(&self, step: &Step) -> Result<()> {
        for &token in &step.tokens {
            let StepToken::SampledBy(ticket, row) = token else { continue };
            if ticket.0 >= self.next || self.next - ticket.0 > IN_FLIGHT as u64 {
                return Err(Error::Ticket(ticket.0));
            }
            let rows = self.rows[ticket.0 as usize % IN_FLIGHT];
            if row as usize >= rows {
                let text = format!("a token is what row {row} of step {} samples, which has {rows} rows", ticket.0);
                return Err(Error::Step(text));
            }
        }
        if self.waiting[self.next as usize % IN_FLIGHT] {
            return Err(Error::InFlight(IN_FLIGHT));
        }
        Ok(())
    }

    /// Issues a ticket for a step of so many rows, which was admitted.
    pub fn issue(&mut self, rows: usize) -> u64 {
        let slot = self.next as usize % IN_FLIGHT;
        self.waiting[slot] = true;
        self.rows[slot] = rows;
        self.next += 1;
        self.next - 1
    }

    /// Takes a ticket back; each is good once.
    pub fn redeem(&mut self, ticket: Ticket) -> Result<()> {
        let slot = ticket.0 as usize % IN_FLIGHT;
        let known = ticket.0 < self.next && self.next - ticket.0 <= IN_FLIGHT as u64 && self.waiting[slot];
        if !known {
            return Err(Error::Ticket(ticket.0));
        }
        self.waiting[slot] = false;
        Ok(())
    }
}
