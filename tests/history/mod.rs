//! A history and its judgement: who sends, who receives, and what became of every message.
//!
//! `clients` send and write down each word they hear; `backend` takes everything as often as it comes and
//! writes down each time; `tally` compares the two. So "every 250 once" can mean the same wherever it is asked.

pub mod backend;
pub mod clients;
pub mod tally;
