// SPDX-License-Identifier: Apache-2.0

// Package monitoring holds a dashboard for Grafana and alerts for Prometheus. Its Go files are
// tests alone; whether meshd exposes the metrics that are used here is tested in internal/metrics.
package monitoring

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// promtool runs Prometheus' tool, which test/setup.sh puts into bin where it is not installed.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		if tool, err = filepath.Abs("../../bin/promtool"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(tool); err != nil {
		t.Fatalf("%v: run test/setup.sh promtool", err)
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	return string(out), err
}

func TestRules(t *testing.T) {
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", "meshd-rules.yaml"},
		{"test", "rules", "meshd-rules-test.yaml"},
	} {
		if out, err := promtool(t, args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

var alert = regexp.MustCompile(`(?m)^ +- alert: (\w+)$`)

// TestEachAlertFires looks for a test of each alert in which it fires.
func TestEachAlertFires(t *testing.T) {
	rules, err := os.ReadFile("meshd-rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("meshd-rules-test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	names := alert.FindAllStringSubmatch(string(rules), -1)
	if len(names) == 0 {
		t.Fatal("no alerts in meshd-rules.yaml")
	}
	for _, name := range names {
		if !strings.Contains(string(tests), `alertname="`+name[1]+`", alertstate="firing"`) && !strings.Contains(string(tests), "alertname: "+name[1]+"\n") {
			t.Errorf("meshd-rules-test.yaml has no test in which %s fires", name[1])
		}
	}
}
