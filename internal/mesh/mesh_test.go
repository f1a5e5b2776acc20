// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/meshd/meshd/internal/mesh"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// cluster returns dual-stack settings with 65,536 pod subnets, or, with narrow, 255
// slots.
func cluster(narrow bool) mesh.Cluster {
	c := mesh.Cluster{
		Name: "test", Generation: 1, Trust: "open", Mode: mesh.ModeFull, Gateways: 1,
		Overlay:   prefixes("10.4.0.0/14", "fd04::/64"),
		Pods:      prefixes("10.128.0.0/9", "fd42::/48"),
		PodPrefix: []int{24, 64},
		Services:  prefixes("10.43.0.0/16"),
	}
	if narrow {
		c.Overlay = prefixes("10.4.0.0/16")
		c.Pods = prefixes("10.42.0.0/16")
		c.PodPrefix = []int{24}
	}
	return c
}

// record returns the record of node i: slot i, a public endpoint, a private network of
// its own.
func record(i int) mesh.Record {
	id := sha256.Sum256(fmt.Append(nil, "identity", i))
	return mesh.Record{
		Identity: id[:], Sequence: 1, Name: fmt.Sprintf("n%d", i),
		Key:   wgtypes.Key(sha256.Sum256(fmt.Append(nil, "key", i))),
		Claim: mesh.Claim{Slot: i, Time: mesh.FirstRelease + int64(1000+i)},
		MTU:   1420, ListenPort: 51820, GossipPort: 7946, Gateway: mesh.GatewayAuto,
		Endpoints:   []mesh.Endpoint{{Host: fmt.Sprintf("198.51.%d.%d", i/250, i%250+1), Port: 51820, Source: mesh.EndpointObserved}},
		InternalIPs: prefixes(fmt.Sprintf("172.%d.%d.5/24", 16+i/250, i%250)),
	}
}

// client returns the i-th client, added by a node.
func client(author mesh.Record, i int) mesh.Client {
	return mesh.Client{
		ID: mesh.IDOf(fmt.Append(nil, "client", i)), Author: author.Identity, Name: fmt.Sprintf("c%d", i),
		Key: wgtypes.Key(sha256.Sum256(fmt.Append(nil, "client key", i))), Index: i, Added: int64(5000 + i), Access: []mesh.Access{{Target: mesh.AccessPods}, {Target: mesh.AccessServices}, {Target: mesh.AccessNodes}},
	}
}

func clusterOf(n int) mesh.Input {
	in := mesh.Input{Cluster: cluster(false)}
	for i := range n {
		in.Records = append(in.Records, record(i))
	}
	in.Self = in.Records[0].ID()
	return in
}

func prefixes(s ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(s))
	for i := range s {
		ps[i] = netip.MustParsePrefix(s[i])
	}
	return ps
}
