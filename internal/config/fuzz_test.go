// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// FuzzParse checks that any file gives a configuration, or errors of one line each that
// name their place in the file.
func FuzzParse(f *testing.F) {
	for _, path := range []string{referencePath, minimalPath} {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, seed := range []string{
		"secret-file: /a\nnode: &a {name: *a}\n---\n",
		"secret-file: /a\ncluster: {overlay: ['fd00:4::/112'], pods: ['fd00:42::/48'], pod-prefix: [64]}",
		"secret-file: /a\njoin: ['[::1]:5', a:5, 10.4.0.1]\nnode: {pod-cidr: [10.42.7.0/24], keepalive: 25s}",
		"a:\n\tb: [",
		"\"\\n\": !!x y",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("meshd.yaml", data)
		if err == nil {
			checkInvariants(t, c)
			return
		}
		all, ok := err.(interface{ Unwrap() []error })
		if !ok {
			t.Fatalf("got %T, want joined errors", err)
		}
		for _, err := range all.Unwrap() {
			var e *Error
			if !errors.As(err, &e) || e.File != "meshd.yaml" || e.Line < 1 || e.Problem == "" || e.Advice == "" {
				t.Errorf("got error %#v, want an Error with file, line, problem and advice", err)
			}
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("error has several lines: %q", err)
			}
		}
	})
}

// checkInvariants checks what the rest of the program relies on.
func checkInvariants(t *testing.T, c Config) {
	t.Helper()
	if c.SecretFile == "" || c.Cluster.Slots() < 1 || len(c.Cluster.PodPrefix) != len(c.Cluster.Pods) {
		t.Errorf("accepted %+v", c)
	}
	for _, h := range append(c.Join, c.Node.Endpoint, c.Gossip.Advertise) {
		if (h.Host == "") != (h.Port == 0) {
			t.Errorf("accepted %+v", h)
		}
		if h.Host == "" {
			continue
		}
		if again, err := hostPort(h.String()); err != nil || again != h {
			t.Errorf("%v reads as %v, %v", h, again, err)
		}
	}
	for _, p := range c.Node.PodCIDR {
		if _, ok := c.Cluster.SlotOf(p); !ok {
			t.Errorf("accepted pod CIDR %v, which belongs to no slot", p)
		}
	}
	if d := c.Node.Keepalive; d != nil && d.Seconds() > 65535 {
		t.Errorf("accepted a keepalive of %v", d)
	}
}
