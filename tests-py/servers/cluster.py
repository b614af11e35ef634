"""A Redis Cluster of three masters on this machine."""

from __future__ import annotations

import time
from typing import Any, Self

from redis.cluster import ClusterNode
from redis.cluster import RedisCluster as Client

from servers.process import READY_WITHIN, free_port
from servers.redis_server import RedisServer

SLOTS = 16_384


class RedisCluster:
    """Masters without replicas that share the slots evenly.

    Attributes:
        nodes: The servers.
    """

    def __init__(self, masters: int = 3, **options: Any) -> None:
        """Choose the settings; nothing runs yet.

        Args:
            masters: How many.
            **options: As for ``RedisServer``.
        """
        self.nodes = [
            RedisServer(
                **options,
                config={
                    "cluster-enabled": "yes",
                    "cluster-config-file": "nodes.conf",
                    "cluster-node-timeout": 2000,
                    "cluster-port": free_port(),
                },
            )
            for _ in range(masters)
        ]

    def url(self) -> str:
        """Return the address for ``connect``."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{hosts}"

    def start(self) -> Self:
        """Start the nodes, share the slots out and wait until all agree."""
        share = -(-SLOTS // len(self.nodes))
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.start()
            low, high = number * share, min((number + 1) * share, SLOTS) - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        with first.client() as client:
            for node in self.nodes[1:]:
                bus = self._bus_port(node)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        deadline = time.monotonic() + READY_WITHIN
        while not all(self._agrees(node) for node in self.nodes):
            assert time.monotonic() < deadline, f"no cluster in {READY_WITHIN} s:\n{first.log}"
            time.sleep(0.05)
        return self

    def _bus_port(self, node: RedisServer) -> int:
        with node.client() as client:
            return int(client.config_get("cluster-port")["cluster-port"])

    def _agrees(self, node: RedisServer) -> bool:
        with node.client() as client:
            found = client.execute_command("CLUSTER", "INFO")
        text = found if isinstance(found, dict) else dict(_lines(found))
        known = int(text["cluster_known_nodes"]) == len(self.nodes)
        return text["cluster_state"] == "ok" and known

    def client(self, **options: Any) -> Client:
        """Return a client that knows the whole cluster."""
        nodes = [ClusterNode("127.0.0.1", node.port) for node in self.nodes]
        return Client(startup_nodes=nodes, **options)

    def node_of(self, slot: int) -> RedisServer:
        """Return the server that holds a slot now."""
        with self.nodes[0].client() as client:
            for low, high, master, *_ in client.execute_command("CLUSTER", "SLOTS"):
                if low <= slot <= high:
                    return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody holds slot {slot}")

    def move(self, slot: int, target: RedisServer) -> None:
        """Move a slot with its keys to another node, as an operator would."""
        source = self.node_of(slot)
        with source.client() as old, target.client() as new:
            old_id = _text(old.execute_command("CLUSTER", "MYID"))
            new_id = _text(new.execute_command("CLUSTER", "MYID"))
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                for key in keys:
                    old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            new.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
            old.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
        for node in self.nodes:
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)

    def close(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Kill all nodes."""
        self.close()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _lines(found: bytes | str) -> list[tuple[str, str]]:
    pairs = [line.partition(":") for line in _text(found).split("\r\n") if ":" in line]
    return [(name, value) for name, _, value in pairs]
