# One image with the three programs: nearring-node, nearring-router and the command line nearring.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p nearring-node -p nearring-router \
    && cargo build --release --locked -p nearring-client --features cli --bin nearring \
    && cp target/release/nearring-node target/release/nearring-router target/release/nearring /usr/local/bin/

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 nearring && mkdir /data && chown nearring /data
COPY --from=build /usr/local/bin/nearring-node /usr/local/bin/nearring-router /usr/local/bin/nearring /usr/local/bin/
USER nearring
VOLUME /data
