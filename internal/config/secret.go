// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// secretSize is the length of a secret in bytes.
const secretSize = 32

// secretExample is the path of the secret in the documentation.
const secretExample = "/etc/meshd/secret"

// Secrets are shared by all members of a mesh. The first one is used to send and all are
// accepted, so that a secret can be replaced without an interruption. Printing them shows
// only their number.
type Secrets [][secretSize]byte

// Format keeps secrets out of everything that the package fmt prints.
func (s Secrets) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%d not shown", len(s)) }

// MarshalText keeps secrets out of JSON and logs.
func (s Secrets) MarshalText() ([]byte, error) { return fmt.Append(nil, s), nil }

// ReadSecrets reads the secret file. Each line has one secret of 32 bytes in base64; empty
// lines and comments that begin with # are allowed. The file must belong to root or to the
// user of this process, and no other user may read it. The errors are *Error, joined.
func ReadSecrets(path string) (Secrets, error) {
	secrets, secretErrs := readSecrets(path)
	var errs []error
	for _, e := range secretErrs {
		errs = append(errs, e)
	}
	return secrets, errors.Join(errs...)
}

func readSecrets(path string) (Secrets, []*Error) {
	fail := func(problem, advice string, cause error) (Secrets, []*Error) {
		return nil, []*Error{{File: path, Problem: problem, Advice: advice, cause: cause}}
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fail("does not exist", "copy it from another node, or for the first node run: meshd secret new --out "+path, err)
	} else if err != nil {
		return fail("can't be opened", err.Error(), err)
	}
	defer f.Close()
	if e := checkOwner(f); e != nil {
		return fail(e.Problem, e.Advice, nil)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return fail("can't be read", err.Error(), err)
	}
	secrets, errs := parseSecrets(path, data)
	if len(secrets) == 0 && len(errs) == 0 {
		return fail("has no secret in it", "copy it from another node, or for the first node run: meshd secret new --out "+path, nil)
	}
	return secrets, errs
}

// checkOwner refuses a file that another user may read or may have written.
func checkOwner(f *os.File) *Error {
	info, err := f.Stat()
	if err != nil {
		return &Error{Problem: "can't be examined", Advice: err.Error()}
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return wrong(fmt.Sprintf("is open to other users (mode %#o)", mode), "run: chmod 600 "+f.Name())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return wrong(fmt.Sprintf("belongs to user %d", st.Uid), "run: chown root "+f.Name())
	}
	return nil
}

// parseSecrets parses the content of a secret file. Its errors never contain a secret.
func parseSecrets(path string, data []byte) (Secrets, []*Error) {
	const advice = "write 32 random bytes in base64, as meshd secret new prints them"
	var secrets Secrets
	var errs []*Error
	in := bufio.NewScanner(bytes.NewReader(data))
	in.Buffer(nil, maxSize+1)
	for line := 1; in.Scan(); line++ {
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		problem := ""
		b, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
		switch {
		case err != nil:
			problem = "is not base64"
		case len(b) != secretSize:
			problem = fmt.Sprintf("has %d bytes instead of %d", len(b), secretSize)
		case [secretSize]byte(b) == [secretSize]byte{}:
			problem = "is all zeroes"
		default:
			secrets = append(secrets, [secretSize]byte(b))
			continue
		}
		errs = append(errs, &Error{File: path, Line: line, Problem: "the secret " + problem, Advice: advice})
	}
	return secrets, errs
}

// Replace returns the content of a secret file with these secrets instead of its own. Its comments stay, at the
// beginning.
func (s Secrets) Replace(content []byte) []byte {
	var out []byte
	for line := range bytes.Lines(content) {
		if text := bytes.TrimSpace(line); len(text) > 0 && text[0] == '#' {
			out = append(append(out, text...), '\n')
		}
	}
	for _, secret := range s {
		out = append(base64.StdEncoding.AppendEncode(out, secret[:]), '\n')
	}
	return out
}
