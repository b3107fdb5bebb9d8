//! Where things live: which nodes hold a shard ([`ring`]), which shard is an id's home ([`ring`]), and the table that
//! the meta group keeps of it ([`table`]).
pub mod ring;
pub mod table;
