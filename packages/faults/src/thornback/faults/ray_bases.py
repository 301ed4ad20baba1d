"""Which exception of Ray is derived from which: data, for where only a name is known."""

from __future__ import annotations

from collections.abc import Mapping

RAY_BASES: Mapping[str, tuple[str, ...]] = {
    "RayError": ("Exception",),
    **dict.fromkeys(
        (
            "CrossLanguageError",
            "TaskCancelledError",
            "RayTaskError",
            "LocalRayletDiedError",
            "WorkerCrashedError",
            "RayActorError",
            "RaySystemError",
            "AuthenticationError",
            "UserCodeException",
            "ObjectStoreFullError",
            "OutOfDiskError",
            "OutOfMemoryError",
            "NodeDiedError",
            "ObjectLostError",
            "RpcError",
            "PlasmaObjectNotAvailable",
            "AsyncioActorExit",
            "RuntimeEnvSetupError",
            "TaskPlacementGroupRemoved",
            "ActorPlacementGroupRemoved",
            "PendingCallsLimitExceeded",
            "TaskUnschedulableError",
            "ActorUnschedulableError",
            "ObjectRefStreamEndOfStreamError",
            "OufOfBandObjectRefSerializationException",
            "UnserializableException",
        ),
        ("RayError",),
    ),
    "ActorDiedError": ("RayActorError",),
    "ActorUnavailableError": ("RayActorError",),
    "ObjectFetchTimedOutError": ("ObjectLostError",),
    "ReferenceCountingAssertionError": ("ObjectLostError", "AssertionError"),
    "ObjectFreedError": ("ObjectLostError",),
    "OwnerDiedError": ("ObjectLostError",),
    "ObjectReconstructionFailedError": ("ObjectLostError",),
    "GetTimeoutError": ("RayError", "TimeoutError"),
    "StreamingGeneratorReplayInconsistentError": ("RaySystemError",),
    "RayChannelError": ("RaySystemError",),
    "RayChannelTimeoutError": ("RayChannelError", "TimeoutError"),
    "RayCgraphCapacityExceeded": ("RaySystemError",),
    "RayDirectTransportError": ("RaySystemError",),
    "ActorAlreadyExistsError": ("ValueError", "RayError"),
    "ActorHandleNotFoundError": ("ValueError", "RayError"),
}
"""Direct bases of the classes of `ray.exceptions`, as in ray 2.60."""
