# One image with the three programs: nearring-node, nearring-router and the command line nearring.
# Without internet: deploy/image builds the same image from programs that are built already.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p nearring-node -p nearring-router \
    && cargo build --release --locked -p nearring-client --features cli --bin nearring \
    && install --strip target/release/nearring-node target/release/nearring-router target/release/nearring /usr/local/bin/

FROM debian:bookworm-slim
# The programs need libc, libstdc++ and nothing else. Volumes mounted on /data and /snapshots take their owner from here.
RUN apt-get update && apt-get install --yes --no-install-recommends libstdc++6 && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home nearring && install --directory --owner nearring /data /snapshots
COPY --from=build /usr/local/bin/nearring-node /usr/local/bin/nearring-router /usr/local/bin/nearring /usr/local/bin/
USER nearring
VOLUME /data
# Programs end at SIGTERM by themselves and have no children: none needs an init. docker-compose.yml names the one to run.
CMD ["nearring", "--help"]
