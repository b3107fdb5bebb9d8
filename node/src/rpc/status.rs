//! What a node says of itself.
use nearring_proto::wire;

/// Who can say how the node is.
#[tonic::async_trait]
pub trait StatusSource: Send + Sync + 'static {
    /// The node's status; `brief` leaves segments out.
    async fn status(&self, brief: bool) -> wire::NodeStatus;
}

/// What the operating system counts for this process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProcessUsage {
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// User and system time since the process began, in milliseconds.
    pub cpu_ms: u64,
}

impl ProcessUsage {
    /// Of this process, now; zeros where the system does not say.
    pub fn now() -> Self {
        #[allow(
            clippy::disallowed_methods,
            reason = "what the system says of the process is shown, and nothing follows from it"
        )]
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        Self::parse(&read("/proc/self/status"), &read("/proc/self/stat"))
    }

    fn parse(status: &str, stat: &str) -> Self {
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        // The second field is the program's name in parentheses, with any characters; user and system time are the
        // fields 14 and 15, in ticks of 10 ms on every Linux.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).into_iter().flatten();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Self { rss_bytes: rss.unwrap_or(0) * 1024, cpu_ms: ticks * 10 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_whatever_the_program_is_called() {
        let status = "Name:\tnearring-node\nVmPeak:\t  999 kB\nVmRSS:\t   12345 kB\n";
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 100";
        assert_eq!(ProcessUsage::parse(status, stat), ProcessUsage { rss_bytes: 12345 * 1024, cpu_ms: 3000 });
        assert_eq!(ProcessUsage::parse("", ""), ProcessUsage::default());
    }
}
