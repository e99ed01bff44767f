//! A history and its judgement: who sends, who receives, and what became of every message.
//!
//! `clients` send by whatever door and write down each word they hear; `backend` takes everything as often as it comes and
//! writes down each time; `tally` compares the two. The cluster (`tests/cluster`) and the torture (`tests/torture`) share it,
//! so that "every 250 once" means the same in both.

pub mod backend;
pub mod clients;
pub mod tally;
