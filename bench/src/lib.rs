//! What the programs here share: real server processes, a network of our own, data from files, figures, and the soak.
//!
//! `load` measures what a cluster costs beside usearch in this process; `quality` looks at answers; `soak` breaks servers,
//! disks and links while clients write and read, and judges every answer. None asserts speed: figures are for people.
//! Open [`soak`] first, then [`cluster`] and [`netns`].

pub mod baseline;
pub mod cluster;
pub mod data;
pub mod figures;
pub mod netns;
pub mod soak;
