// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"errors"
	"strings"
	"testing"
)

func TestParameterProblems(t *testing.T) {
	desired := State{Sysctls: []Sysctl{{"net.ipv4.conf.meshd0.forwarding", "1"}, {"net.ipv4.conf.meshd0.rp_filter", "2"}, {"net.ipv4.ip_forward", "1"}}}
	readOnly := errors.New("read-only file system")
	observed := State{
		Device:  &Device{},
		Sysctls: []Sysctl{{"net.ipv4.conf.meshd0.forwarding", "0"}, {"net.ipv4.conf.meshd0.rp_filter", "1"}},
		SysctlErrs: map[string]error{
			"net.ipv4.conf.meshd0.forwarding": readOnly,
			"net.ipv4.ip_forward":             readOnly,
		},
	}
	got := ParameterProblems(observed, desired)
	want := []string{
		"net.ipv4.conf.meshd0.forwarding = 1 (now 0), net.ipv4.ip_forward = 1 (missing) are not set: read-only file system",
		"net.ipv4.conf.meshd0.rp_filter = 2 (now 1) are not set: another program sets them back",
	}
	if len(got) != len(want) {
		t.Fatalf("got %d problems, want %d", len(got), len(want))
	}
	for i, p := range got {
		if p.Kind != ProblemParameter || !strings.Contains(p.Text, want[i]) {
			t.Errorf("got %q, want %q in it", p.Text, want[i])
		}
	}
	if want := "sysctl -w net.ipv4.conf.meshd0.forwarding=1 net.ipv4.ip_forward=1;"; !strings.Contains(got[0].Advice, want) {
		t.Errorf("got advice %q, want %q in it", got[0].Advice, want)
	}
	observed.Device = nil
	if got := ParameterProblems(observed, desired); got != nil {
		t.Errorf("got %v without a device, want none", got)
	}
}
