// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
)

func TestChanged(t *testing.T) {
	tests := []struct {
		name          string
		from, to      string
		live, restart []string
	}{
		{"nothing", "node: {name: a}", "# a comment\nnode:\n  name: a\n", nil, nil},
		{"a default written down", "", "cluster: {pod-prefix: [24]}\nnode: {gateway: auto}\njoin: []", nil, nil},
		{
			"what a running daemon takes", "node: {keepalive: 25s}", `
join: [a]
node: {location: x, endpoint: a, internal-ip: 192.168.10.1/24, gateway: prefer, encryption: required, relay: prefer, port-mapping: off, keepalive: 10s, pod-cidr: [10.42.7.0/24], allowed-location-ips: [192.168.20.0/24], links: [/etc/meshd/west.conf], link-access: [pods]}
cluster: {generation: 2, trust: list, trusted: [00112233445566778899aabbccddeeff], mode: location, encapsulation: never, gateways: 2, forget-after: 2h, services: [10.96.0.0/16]}
wireguard: {mtu: 1400}
gossip: {advertise: b}
relay: {max-rate: 10000}
probe: {interval: 1s, misses: 3}
k3s: {write-config: true, role: server, etcd: wan}
metrics: {listen: ""}
`,
			[]string{
				"join", "node.location", "node.endpoint", "node.internal-ip", "node.gateway", "node.encryption", "node.relay", "node.port-mapping", "node.keepalive", "node.pod-cidr", "node.allowed-location-ips", "node.links", "node.link-access",
				"cluster.generation", "cluster.trust", "cluster.trusted", "cluster.mode", "cluster.encapsulation", "cluster.gateways", "cluster.forget-after",
				"cluster.services", "cluster.dns.address", "wireguard.mtu", "gossip.advertise", "relay.max-rate", "probe.interval", "probe.misses", "k3s.write-config", "k3s.role", "k3s.etcd", "metrics.listen",
			},
			nil,
		},
		{
			"what it can't", "", `
node: {name: a}
cluster: {name: b, overlay: [10.5.0.0/16], pods: ["10.44.0.0/16"], pod-prefix: [25]}
wireguard: {interface: wg9, listen-port: 1, implementation: kernel}
gossip: {bind: ":80"}
relay: {listen: ":443"}
cni: {enabled: false, conf-dir: /a, bin-dir: /b, plugin-source: /c, bridge: d}
`, nil,
			[]string{
				"node.name", "cluster.name", "cluster.overlay", "cluster.pods", "cluster.pod-prefix", "wireguard.interface", "wireguard.listen-port",
				"wireguard.implementation", "gossip.bind", "relay.listen", "cni.enabled", "cni.conf-dir", "cni.bin-dir", "cni.plugin-source", "cni.bridge",
			},
		},
		{"both", "", "join: [a]\nnode: {name: a}", []string{"join"}, []string{"node.name"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live, restart := config.Changed(parse(t, tt.from), parse(t, tt.to))
			if diff := cmp.Diff([][]string{tt.live, tt.restart}, [][]string{live, restart}); diff != "" {
				t.Errorf("live and restart (-want +got):\n%s", diff)
			}
		})
	}
}

// A change of the secrets is in a file of their own.
func TestChangedSecrets(t *testing.T) {
	from, to := defaults(), defaults()
	from.Secrets, to.Secrets = config.Secrets{{1}}, config.Secrets{{2}, {1}}
	for _, path := range []string{from.SecretFile, "/etc/meshd/other"} {
		to.SecretFile = path
		live, restart := config.Changed(from, to)
		if diff := cmp.Diff([]string{"secret-file"}, live); diff != "" || restart != nil {
			t.Errorf("secrets of %s: got restart %q, live (-want +got):\n%s", path, restart, diff)
		}
	}
}

func parse(t *testing.T, text string) config.Config {
	t.Helper()
	c, err := config.Parse("meshd.yaml", []byte(head+text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
