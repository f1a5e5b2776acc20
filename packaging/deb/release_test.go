// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// project copies the source, as it is now, into a repository of its own with one commit.
func project(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	command := exec.Command("sh", "-c", `git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$0"`, dir)
	command.Dir = "../.."
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("copy the source: %v\n%s", err, out)
	}
	output(t, "git", "-C", dir, "init", "--quiet")
	commit(t, dir, "2026-01-02T03:04:05Z")
	return dir
}

// commit commits everything in a repository.
func commit(t *testing.T, dir, date string) {
	t.Helper()
	output(t, "git", "-C", dir, "add", "--all")
	cmd := exec.Command("git", "-C", dir, "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "--allow-empty", "-m", "test")
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE="+date, "GIT_COMMITTER_DATE="+date)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("commit: %v\n%s", err, out)
	}
}

// number is the version of the next or newest release.
func number(t *testing.T, dir string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^## (.*)$`).FindSubmatch(content)
	if m == nil {
		t.Fatal("CHANGELOG.md has no heading")
	}
	return string(m[1])
}

// TestRelease makes a release for this machine's architecture from a tagged commit, and looks
// at it as somebody does who has downloaded it.
func TestRelease(t *testing.T) {
	key := signer(t)
	dir := project(t)
	version := number(t, dir)
	output(t, "git", "-C", dir, "tag", "v"+version)
	release(t, dir, key)

	dist, arch := filepath.Join(dir, "dist"), architectures[0]
	name := "meshd-" + version + "-linux-" + arch
	files := []string{"meshd-" + version + ".cdx.json", name + ".tar.gz", "meshd_" + version + "-1_" + arch + ".deb"}
	checkSums(t, dist, files)
	if out := output(t, "git", "-C", dir, "status", "--porcelain"); out != "" {
		t.Errorf("the release leaves files in the tree:\n%s", out)
	}

	root := t.TempDir()
	output(t, "tar", "-xzf", filepath.Join(dist, name+".tar.gz"), "-C", root)
	root = filepath.Join(root, name)
	checkTarball(t, root, filepath.Join(dist, name+".tar.gz"))
	pkg := filepath.Join(root, "package")
	output(t, "dpkg-deb", "-x", filepath.Join(dist, files[2]), pkg)
	checkVersions(t, version, root, pkg)
	checkBill(t, filepath.Join(dist, files[0]), version, filepath.Join(root, "meshd"))
	checkRepository(t, dist, version)
}

// release makes a release for this machine's architecture.
func release(t *testing.T, dir, key string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(dir, "packaging/release.sh"), key)
	cmd.Env = append(os.Environ(), "ARCHS="+architectures[0], "DIST=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("release: %v\n%s", err, out)
	}
}

// checkSums checks the signature of SHA256SUMS, and that it has all files.
func checkSums(t *testing.T, dist string, files []string) {
	t.Helper()
	sums := filepath.Join(dist, "SHA256SUMS")
	output(t, "gpg", "--batch", "--verify", sums+".asc", sums)
	cmd := exec.Command("sha256sum", "--strict", "--check", "SHA256SUMS")
	cmd.Dir = dist
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		got = append(got, strings.TrimSuffix(line, ": OK\n"))
	}
	slices.Sort(got)
	if diff := cmp.Diff(slices.Sorted(slices.Values(files)), got); diff != "" {
		t.Errorf("files in SHA256SUMS (-want +got):\n%s", diff)
	}
}

// checkTarball checks what is in the tarball, whose files are nobody's in particular.
func checkTarball(t *testing.T, root, tarball string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(output(t, "tar", "--numeric-owner", "--full-time", "-tvzf", tarball)) {
		f := strings.Fields(line) // mode, owner, size, day, time, path
		if f[1] != "0/0" || f[3]+" "+f[4] != "2026-01-02 03:04:05" {
			t.Errorf("%s: got owner and time %v, want 0/0 and the commit's", f[5], f[1:5])
		}
		if _, path, _ := strings.Cut(f[5], "/"); !strings.HasSuffix(f[5], "/") {
			got = append(got, f[0]+" "+path)
		}
	}
	slices.Sort(got)
	want := []string{
		"-rw-r--r-- CHANGELOG.md",
		"-rw-r--r-- LICENSE",
		"-rw-r--r-- NOTICES",
		"-rw-r--r-- completions/_meshd",
		"-rw-r--r-- completions/meshd.bash",
		"-rw-r--r-- completions/meshd.fish",
		"-rw-r--r-- examples/meshd-dashboard.json",
		"-rw-r--r-- examples/meshd-minimal.yaml",
		"-rw-r--r-- examples/meshd-rules.yaml",
		"-rw-r--r-- examples/meshd.yaml",
		"-rw-r--r-- man/man5/meshd.yaml.5.gz",
		"-rw-r--r-- man/man8/meshd.8.gz",
		"-rw-r--r-- systemd/10-meshd.network",
		"-rw-r--r-- systemd/k3s.conf",
		"-rw-r--r-- systemd/meshd-connect@.service",
		"-rw-r--r-- systemd/meshd-drain.service",
		"-rw-r--r-- systemd/meshd-online.service",
		"-rw-r--r-- systemd/meshd.service",
		"-rw-r--r-- systemd/meshd.sysusers",
		"-rw-r--r-- systemd/meshd.tmpfiles",
		"-rwxr-xr-x meshd",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files of the tarball (-want +got):\n%s", diff)
	}
	notices, err := os.ReadFile(filepath.Join(root, "NOTICES"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "https://github.com/hashicorp/memberlist/tree/v"; !strings.Contains(string(notices), want) {
		t.Errorf("NOTICES does not say %q, where the source of a module under the MPL is", want)
	}
}

// unzip returns what is in a gzipped file.
func unzip(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// checkVersions: the program, the package, its manual pages and its changelog have the version
// at the head of CHANGELOG.md.
func checkVersions(t *testing.T, version, root, pkg string) {
	t.Helper()
	for what, has := range map[string][2]string{
		"meshd --version":  {output(t, filepath.Join(root, "meshd"), "--version"), "meshd " + version + "\n"},
		"changelog":        {unzip(t, filepath.Join(pkg, "usr/share/doc/meshd/changelog.gz")), "\n## " + version + "\n"},
		"changelog.Debian": {unzip(t, filepath.Join(pkg, "usr/share/doc/meshd/changelog.Debian.gz")), "meshd (" + version + "-1) "},
		"meshd(8)":         {unzip(t, filepath.Join(root, "man/man8/meshd.8.gz")), `"meshd ` + version + `"`},
		"meshd.yaml(5)":    {unzip(t, filepath.Join(root, "man/man5/meshd.yaml.5.gz")), `"meshd ` + version + `"`},
	} {
		if !strings.Contains(has[0], has[1]) {
			t.Errorf("%s does not have %q: %.200s", what, has[1], has[0])
		}
	}
	for _, name := range []string{"usr/bin/meshd", "usr/share/man/man8/meshd.8.gz"} {
		inTarball := map[string]string{"usr/bin/meshd": "meshd", "usr/share/man/man8/meshd.8.gz": "man/man8/meshd.8.gz"}[name]
		output(t, "cmp", filepath.Join(pkg, name), filepath.Join(root, inTarball))
	}
}

// checkBill: the bill of materials has what CycloneDX 1.5 requires, and each module that is
// linked into the program.
func checkBill(t *testing.T, path, version, program string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type component struct {
		Type, Name, Version, Purl string
		Ref                       string `json:"bom-ref"`
		Licenses                  []struct{ Expression string }
		ExternalReferences        []struct{ Type, URL string }
	}
	var bill struct {
		BomFormat, SpecVersion, SerialNumber string
		Version                              int
		Metadata                             struct {
			Timestamp string
			Component component
		}
		Components []component
	}
	if err := json.NewDecoder(bytes.NewReader(content)).Decode(&bill); err != nil {
		t.Fatal(err)
	}
	main := bill.Metadata.Component
	got := []string{bill.BomFormat, bill.SpecVersion, bill.Metadata.Timestamp, main.Type, main.Name, main.Version}
	if diff := cmp.Diff([]string{"CycloneDX", "1.5", "2026-01-02T03:04:05Z", "application", "meshd", version}, got); diff != "" || bill.Version != 1 {
		t.Errorf("head of the bill, version %d (-want +got):\n%s", bill.Version, diff)
	}
	// The pattern is that of CycloneDX's schema.
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`).MatchString(bill.SerialNumber) {
		t.Errorf("serial number: got %q", bill.SerialNumber)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	linked := []string{"std " + strings.TrimPrefix(info.GoVersion, "go")}
	for _, d := range info.Deps {
		linked = append(linked, d.Path+" "+d.Version)
	}
	slices.Sort(linked)
	var listed []string
	refs := map[string]bool{}
	for _, c := range bill.Components {
		listed = append(listed, c.Name+" "+c.Version)
		if c.Type != "library" || c.Ref == "" || refs[c.Ref] || len(c.Licenses) != 1 || c.Licenses[0].Expression == "" || !strings.HasPrefix(c.Purl, "pkg:golang/"+c.Name+"@") {
			t.Errorf("component of the bill: got %+v, want a library with a reference of its own, a licence and a package URL", c)
		}
		refs[c.Ref] = true
		if mpl := c.Licenses[0].Expression == "MPL-2.0"; mpl != (len(c.ExternalReferences) == 1) {
			t.Errorf("%s is under %s: got references %v, want one to the source if it is under the MPL", c.Name, c.Licenses[0].Expression, c.ExternalReferences)
		}
	}
	slices.Sort(listed)
	if diff := cmp.Diff(linked, listed); diff != "" {
		t.Errorf("modules of the program and of the bill (-linked +listed):\n%s", diff)
	}
}

// checkRepository: apt finds the release in the signed repository.
func checkRepository(t *testing.T, dist, version string) {
	t.Helper()
	get := apt(t, filepath.Join(dist, "apt"))
	if out, err := get("update", "--error-on=any"); err != nil {
		t.Fatalf("apt-get update: %v\n%s", err, out)
	}
	out, err := get("install", "--simulate", "--no-install-recommends", "meshd")
	if err != nil || !strings.Contains(out, "Inst meshd ("+version+"-1 meshd:stable") {
		t.Errorf("apt-get install meshd: %v\n%s", err, out)
	}
}

// TestReleaseIsRefused: without a key, and of what no commit has.
func TestReleaseIsRefused(t *testing.T) {
	key := signer(t)
	dir := project(t)
	if err := os.WriteFile(filepath.Join(dir, "new.go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ key, want string }{
		{"", "KEY=FINGERPRINT"},
		{strings.Repeat("0", 40), "no secret key"},
		{key, "new.go"},
	} {
		out, err := exec.Command(filepath.Join(dir, "packaging/release.sh"), test.key).CombinedOutput()
		if err == nil || !strings.Contains(string(out), test.want) {
			t.Errorf("release.sh %q: got %v: %s; want an error with %q", test.key, err, out, test.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "dist")); err == nil {
		t.Error("a release that is refused leaves dist")
	}
}

// TestVersions: the versions of commits before, at and after a release ascend for dpkg.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "packaging/version.sh")
	if err := os.Mkdir(filepath.Dir(script), 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, "cp", "../version.sh", script)
	changelog := func(heading string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), []byte("# Changelog\n\n## "+heading+"\n\n- new\n\n## 0.0.9\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var versions []string
	add := func(want string) {
		t.Helper()
		got := strings.TrimSuffix(output(t, script), "\n")
		if !regexp.MustCompile(`^` + want + `$`).MatchString(got) {
			t.Errorf("version: got %s, want %s", got, want)
		}
		versions = append(versions, got)
	}
	changelog("0.1.0")
	if got := output(t, script); got != "0.1.0\n" {
		t.Errorf("without git: got %q, want 0.1.0", got)
	}
	output(t, "git", "-C", dir, "init", "--quiet")
	commit(t, dir, "2026-01-01T23:00:00Z")
	add(`0\.1\.0~dev20260101230000\.g[0-9a-f]{12}`)
	commit(t, dir, "2026-01-02T01:00:00+01:00")
	add(`0\.1\.0~dev20260102000000\.g[0-9a-f]{12}`)
	output(t, "git", "-C", dir, "tag", "v0.1.0")
	add(`0\.1\.0`)
	changelog("0.1.0\n\nchanged")
	add(`0\.1\.0\+dev20260102000000\.g[0-9a-f]{12}\.dirty`)
	commit(t, dir, "2026-01-03T00:00:00Z")
	add(`0\.1\.0\+dev20260103000000\.g[0-9a-f]{12}`)
	changelog("0.1.1")
	commit(t, dir, "2026-01-04T00:00:00Z")
	add(`0\.1\.1~dev20260104000000\.g[0-9a-f]{12}`)
	for i, v := range versions[1:] {
		if err := exec.Command("dpkg", "--compare-versions", versions[i]+"-1", "lt", v+"-1").Run(); err != nil {
			t.Errorf("dpkg does not sort %s before %s", versions[i], v)
		}
	}
	changelog("Unreleased")
	if out, err := exec.Command(script).CombinedOutput(); err == nil || !strings.Contains(string(out), "CHANGELOG.md") {
		t.Errorf("without a number: got %v: %s; want an error that names CHANGELOG.md", err, out)
	}
}
