// SPDX-License-Identifier: Apache-2.0

package host

import "testing"

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":                "/proc/sys/net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.rp_filter":   "/proc/sys/net/ipv4/conf/eth0.100/rp_filter",
		"net.bridge.bridge-nf-call-iptables": "/proc/sys/net/bridge/bridge-nf-call-iptables",
	} {
		if got := sysctlPath(key); got != want {
			t.Errorf("sysctlPath(%q): got %s, want %s", key, got, want)
		}
	}
}
