-- dnsdist as the yardstick. What is not said here is at its default.

-- Where the benchmark asks; one listener, since all that is compared has one core.
setLocal("10.77.2.2:53")
-- The benchmark's client: the default has its network too, but says so for all private ones.
setACL({"10.77.0.0/16"})
-- The upstream that answers what the cache does not have.
newServer({address="127.0.0.1:5300"})
-- Without a packet cache dnsdist keeps no answers; there is room for ten times the names that are asked for.
getPool(""):setCache(newPacketCache(100000))
-- Asks the vendor for known holes otherwise, which this namespace cannot reach.
setSecurityPollSuffix("")
